//! Kernel images and initramfs archives on their way into guest memory.

use std::fs::File;
use std::io::Write;

use arbitrary::{Result, Unstructured};
use husk_vmm::memory;
use husk_vmm::resources::BootFiles;
use husk_vmm::x86_64::{boot, layout};
use nix::sys::memfd::{MFdFlags, memfd_create};

fn file(content: &[u8]) -> File {
    let mut file = File::from(memfd_create("kernel", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(content).unwrap();
    file
}

pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 4 {
        0 => load(rest, &[]),
        1 => {
            // A script that ends too early is no image.
            let _ = elf(&mut Unstructured::new(rest)).map(|image| load(&image, &[rest]));
        }
        2 => {
            let _ = bzimage(&mut Unstructured::new(rest)).map(|image| load(&image, &[rest, &rest[..rest.len() / 2]]));
        }
        _ => {
            let (kernel, initramfs) = rest.split_at(rest.len() / 2);
            load(kernel, &[initramfs]);
        }
    }
}

fn load(kernel: &[u8], initramfs: &[&[u8]]) {
    let memory = memory::create(32).unwrap();
    let files = BootFiles {
        kernel: file(kernel),
        initramfs: initramfs.iter().map(|content| file(content)).collect(),
    };
    // What is wrong with it does not matter.
    let _ = boot::load(&memory, &files, "quiet", layout::ACPI_TABLES);
}

/// A number that is likely to mean something.
fn number(script: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match script.int_in_range(0..=7_u8)? {
        0 => script.arbitrary()?,
        1 => u64::MAX - u64::from(script.arbitrary::<u16>()?),
        2 => u64::from(script.arbitrary::<u32>()?),
        3 => 0,
        4 | 5 => u64::from(script.arbitrary::<u8>()?),
        // From 1 MiB on, where kernels lie.
        _ => (1 << 20) + u64::from(script.arbitrary::<u16>()?) * 0x400,
    })
}

/// An ELF with a few program headers and what is left of the script behind them.
fn elf(script: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let count = script.int_in_range(0..=4_u16)?;
    let entry = number(script)?;
    let headers = if script.ratio(1, 16)? { number(script)? } else { 64 };
    let size = if script.ratio(1, 16)? {
        script.arbitrary()?
    } else {
        56_u16
    };
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    image.extend(2_u16.to_le_bytes());
    image.extend(62_u16.to_le_bytes());
    image.extend(1_u32.to_le_bytes());
    for word in [entry, headers, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0_u32.to_le_bytes());
    for half in [64, size, count, 0, 0, 0_u16] {
        image.extend(half.to_le_bytes());
    }
    let behind = 64 + u64::from(count) * 56;
    for _ in 0..count {
        let kind = *script.choose(&[1_u32, 1, 1, 4, 4, 0, 6])?;
        image.extend(kind.to_le_bytes());
        image.extend(7_u32.to_le_bytes());
        let offset = if script.arbitrary()? { behind } else { number(script)? };
        let address = number(script)?;
        let length = number(script)?;
        let in_memory = if script.arbitrary()? { length } else { number(script)? };
        for word in [offset, address, address, length, in_memory, 4] {
            image.extend(word.to_le_bytes());
        }
    }
    if script.arbitrary()? {
        for word in [4_u32, 4, 18] {
            image.extend(word.to_le_bytes());
        }
        image.extend(b"Xen\0");
        image.extend((number(script)? as u32).to_le_bytes());
    }
    image.extend(script.bytes(script.len())?);
    Ok(image)
}

/// A bzImage whose setup header is mostly sound.
fn bzimage(script: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut image = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[script.int_in_range(0..=2)?]);
    put(0x1f4, &(number(script)? as u32).to_le_bytes());
    put(0x200, &[0xeb, script.arbitrary()?]);
    put(0x202, b"HdrS");
    put(
        0x206,
        &if script.ratio(1, 16)? {
            script.arbitrary()?
        } else {
            0x20f_u16
        }
        .to_le_bytes(),
    );
    put(0x211, &[script.int_in_range(0..=1)?]);
    put(0x22c, &(number(script)? as u32).to_le_bytes());
    put(0x236, &script.int_in_range(0..=1_u16)?.to_le_bytes());
    put(0x238, &(number(script)? as u32).to_le_bytes());
    put(0x258, &number(script)?.to_le_bytes());
    put(0x260, &(number(script)? as u32).to_le_bytes());
    image.extend(script.bytes(script.len())?);
    Ok(image)
}
