// From a processor's first instruction to ring 3, in as few instructions as possible: a KVM in software interprets
// ring 0. Everything that can be a constant of the image is one. AT&T syntax.

.section .note.pvh, "a"
.balign 4
.long 4, 4, 18
.asciz "Xen"
.long start32

.section .boot, "awx"

// The linker puts this section at 0x200000: the task state segments' addresses are constants below.
.set TSS0, 0x200000
.set TSS1, 0x200080

tss0:
.long 0
.quad stack0_end
.fill 90, 1, 0
.word 104
.balign 128
tss1:
.long 0
.quad stack1_end
.fill 90, 1, 0
.word 104
.balign 128

gdt:
.quad 0
.quad 0x00af9b000000ffff        // 0x08 ring 0, 64-bit code
.quad 0x00cf93000000ffff        // 0x10 ring 0, data
.quad 0x00cff3000000ffff        // 0x18 ring 3, data
.quad 0x00affb000000ffff        // 0x20 ring 3, 64-bit code
.quad 0x0000890000000067 | (TSS0 & 0xffffff) << 16, 0   // 0x28
.quad 0x0000890000000067 | (TSS1 & 0xffffff) << 16, 0   // 0x38
.quad 0x00cf9b000000ffff        // 0x48 ring 0, 32-bit code
gdt_end:

.balign 8
gdt_pointer:
.word gdt_end - gdt - 1
.quad gdt
.balign 8
idt_pointer:
.word 16 * 32 - 1
.quad interrupt_table

.code32
.globl start32
start32:
    cli
    movl %ebx, %edi
    xorl %esi, %esi

// edi: the start info; esi: the processor's index.
enter_long_mode:
    lgdt gdt_pointer
    movl $0x20, %eax
    movl %eax, %cr4
    movl $page_map, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    movl $0x100, %eax
    xorl %edx, %edx
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax
    movl %eax, %cr0
    ljmp $0x08, $start64

.code64
start64:
    movl %edi, %edi             // the upper halves are not defined
    movl %esi, %esi
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $stack0_end, %esp
    movl $stack0_user_end, %ecx
    movl $0x28, %eax
    testl %esi, %esi
    jz 1f
    movl $stack1_end, %esp
    movl $stack1_user_end, %ecx
    movl $0x38, %eax
1:  ltr %ax
    lidt idt_pointer
    pushq $0x1b
    subq $8, %rcx               // as after a call
    pushq %rcx
    pushq $0x2                  // interrupts stay off
    pushq $0x23
    pushq $ring3
    xorl %ebp, %ebp
    movl $0x1b, %eax
    movl %eax, %ds
    movl %eax, %es
    iretq

// The way back from ring 3 (machine.rs): ud2, which every KVM delivers, with a number in rax: SERVICE alone halts
// for good, with 1 more it switches the machine off, with 2 it says that it has panicked, with 3 it accesses a port
// and goes back.
.globl service_gate
service_gate:
    movabsq $0x565253004b535548, %r11
    cmpq %r11, %rax
    je halt
    incq %r11
    cmpq %r11, %rax
    je off
    incq %r11
    cmpq %r11, %rax
    je panicked
    incq %r11
    cmpq %r11, %rax
    je port
    pushq $6
    jmp exception
off:
    movw $0x600, %dx            // ACPI S5, on a hardware-reduced machine
    movb $0x34, %al
    outb %al, %dx
    movb $0xfe, %al             // elsewhere, the keyboard controller's reset
    outb %al, $0x64
    jmp halt
panicked:
    movw $0x505, %dx            // pvpanic
    movb $1, %al
    outb %al, %dx
halt:
    cli
1:  hlt
    jmp 1b

// dx is the port, r8 says which of these accesses: 32 bytes each, so that their addresses can be computed. r9 goes out,
// and what came in comes back in it; rcx, rsi and rdi are those of the instructions that repeat.
port:
    addq $2, (%rsp)             // behind the ud2
    shlq $5, %r8
    addq $port_accesses, %r8
    movl %r9d, %eax
    jmp *%r8
.balign 32
port_accesses:
    outb %al, %dx
    jmp 1f
.balign 32
1:  outw %ax, %dx
    outl %eax, %dx
    xorl %eax, %eax
    inb %dx, %al
    movl %eax, %r9d
    inw %dx, %ax
    xorl %eax, %r9d
    inl %dx, %eax
    xorl %eax, %r9d
    iretq
.balign 32
    rep outsb
    iretq
.balign 32
    rep outsw
    iretq
.balign 32
    rep outsl
    iretq
.balign 32
    rep insb
    iretq
.balign 32
    rep insw
    iretq
.balign 32
    rep insl
    iretq

// Exceptions: 16 bytes a stub, so that their addresses can be computed.
.balign 16
.globl exception_stubs
exception_stubs:
.set vector, 0
.rept 32
    .balign 16
    pushq $vector
    jmp exception
    .set vector, vector + 1
.endr

// Leaves what happened in the shared page (report.rs, `fault`): vector, the next two words of the stack (error code
// and rip, or rip and cs), cr2.
.balign 16
exception:
    popq %rax
    incq %rax
    movq %rax, 0x100040
    movq (%rsp), %rax
    movq %rax, 0x100048
    movq 8(%rsp), %rax
    movq %rax, 0x100050
    movq %cr2, %rax
    movq %rax, 0x100058
    jmp panicked

// A further processor begins in real mode; this is copied to 0x8000 (layout.rs).
.balign 16
.code16
.globl trampoline
trampoline:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl 0x8000 + (trampoline_gdt - trampoline)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $0x48, $second32
.balign 8
trampoline_gdt:
.word gdt_end - gdt - 1
.long gdt
.globl trampoline_end
trampoline_end:

.code32
second32:
    movl $0x10, %eax
    movl %eax, %ds
    movl $1, %esi
    xorl %edi, %edi
    jmp enter_long_mode
.code64

// The first 4 GiB onto themselves, open to ring 3.
.balign 4096
page_map:
.quad page_directories + 7
.fill 511, 8, 0
page_directories:
.quad page_directory + 0x0007, page_directory + 0x1007, page_directory + 0x2007, page_directory + 0x3007
.fill 508, 8, 0
page_directory:
.set page, 0
.rept 2048
    .quad page * 0x200000 + 0x87
    .set page, page + 1
.endr

.section .bss
.balign 16
.fill 4096, 1, 0
stack0_end:
.fill 4096, 1, 0
stack1_end:
.fill 65536, 1, 0
stack0_user_end:
.fill 65536, 1, 0
stack1_user_end:
.text
