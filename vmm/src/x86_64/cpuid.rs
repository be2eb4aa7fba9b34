//! What CPUID tells the guest: what KVM supports, with this machine's own topology.
//!
//! One package of cores with one or two threads each. A vCPU's APIC identifier is its index: threads of a core are
//! neighbours, and with one or two threads a core there are no gaps.

use husk_vmm_config::Topology;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use thiserror::Error;

const HTT: u32 = 1 << 28;
const TSC_DEADLINE: u32 = 1 << 24;
const X2APIC: u32 = 1 << 21;
const HYPERVISOR: u32 = 1 << 31;
const AMD_CMP_LEGACY: u32 = 1 << 1;
const AMD_TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Why there is no CPUID for the guest.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum CpuidError {
    #[error("KVM does not tell which CPUID leaves it supports")]
    Supported(#[source] kvm_ioctls::Error),
    #[error("the CPUID leaves are more than KVM takes")]
    TooMany(#[source] vmm_sys_util::fam::Error),
}

/// The leaves that are the same for all vCPUs of a machine.
#[derive(Clone, Debug)]
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    topology: Topology,
    deadline_timer: bool,
}

impl Template {
    /// Asks KVM once what it supports.
    ///
    /// # Errors
    /// A refusal of KVM.
    pub fn new(kvm: &Kvm, topology: Topology) -> Result<Self, CpuidError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(CpuidError::Supported)?;
        Ok(Self {
            entries: supported.as_slice().to_vec(),
            topology,
            deadline_timer: kvm.check_extension(Cap::TscDeadlineTimer),
        })
    }

    /// The leaves of one vCPU.
    ///
    /// # Errors
    /// More leaves than KVM takes.
    pub fn for_vcpu(&self, index: u32) -> Result<CpuId, CpuidError> {
        CpuId::from_entries(&self.entries_for(index)).map_err(CpuidError::TooMany)
    }

    fn entries_for(&self, index: u32) -> Vec<kvm_cpuid_entry2> {
        let mut entries = self.entries.clone();
        let most = entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
        let amd = entries
            .iter()
            .any(|e| e.function == 0x8000_0001 && e.ecx & AMD_TOPOLOGY_EXTENSIONS != 0);
        // KVM shows the host's topology, or none, in these; they are written anew.
        let own = [0xb, 0x1f, 0x8000_001e, 0x8000_0026];
        entries.retain(|entry| !own.contains(&entry.function));
        for entry in &mut entries {
            self.adjust(entry, index);
        }
        for function in [0xb, 0x1f] {
            if function <= most {
                entries.extend(self.levels(function, index));
            }
        }
        if amd {
            entries.push(self.amd_identifiers(index));
        }
        entries
    }

    fn adjust(&self, entry: &mut kvm_cpuid_entry2, index: u32) {
        let Topology {
            count,
            threads_per_core,
        } = self.topology;
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xffff | count.next_power_of_two() << 16 | index << 24;
                set(&mut entry.edx, HTT, count > 1);
                set(&mut entry.ecx, TSC_DEADLINE, self.deadline_timer);
                set(&mut entry.ecx, X2APIC | HYPERVISOR, true);
            }
            // Intel's caches: who shares them, and how many cores the package can have.
            4 if entry.eax & 0x1f != 0 => {
                let cores = (count / threads_per_core).next_power_of_two();
                entry.eax = entry.eax & 0x3fff | (self.sharing(entry.eax) - 1) << 14 | (cores - 1) << 26;
            }
            // AMD's.
            0x8000_001d if entry.eax & 0x1f != 0 => {
                entry.eax = entry.eax & 0x3fff | (self.sharing(entry.eax) - 1) << 14;
            }
            0x8000_0001 => set(&mut entry.ecx, AMD_CMP_LEGACY, self.is_amd() && count > 1),
            0x8000_0008 if self.is_amd() => {
                entry.ecx = (count - 1) | self.package_shift() << 12;
            }
            _ => {}
        }
    }

    /// How many vCPUs share the cache of which a leaf's `eax` tells: the first two levels belong to a core.
    fn sharing(&self, eax: u32) -> u32 {
        let level = eax >> 5 & 7;
        if level < 3 {
            self.topology.threads_per_core
        } else {
            self.topology.count.next_power_of_two()
        }
    }

    /// The levels of leaves 0xb and 0x1f: threads of a core, cores of the package, the end.
    fn levels(&self, function: u32, index: u32) -> [kvm_cpuid_entry2; 3] {
        let Topology {
            count,
            threads_per_core,
        } = self.topology;
        let level = |number: u32, kind: u32, shift: u32, threads: u32| kvm_cpuid_entry2 {
            function,
            index: number,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: threads,
            ecx: number | kind << 8,
            edx: index,
            ..Default::default()
        };
        [
            level(0, LEVEL_THREAD, threads_per_core.ilog2(), threads_per_core),
            level(1, LEVEL_CORE, self.package_shift(), count),
            level(2, 0, 0, 0),
        ]
    }

    /// Leaf 0x8000001e: APIC identifier, core and its threads, node.
    fn amd_identifiers(&self, index: u32) -> kvm_cpuid_entry2 {
        let threads = self.topology.threads_per_core;
        kvm_cpuid_entry2 {
            function: 0x8000_001e,
            eax: index,
            ebx: (index / threads) | ((threads - 1) << 8),
            ..Default::default()
        }
    }

    /// By how many bits an APIC identifier is shifted to give its package.
    fn package_shift(&self) -> u32 {
        self.topology.count.next_power_of_two().ilog2()
    }

    fn is_amd(&self) -> bool {
        self.entries
            .iter()
            .any(|e| e.function == 0 && [*b"Auth", *b"Hygo"].contains(&e.ebx.to_le_bytes()))
    }
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, eax: u32, ebx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ..Default::default()
        }
    }

    fn template(vendor: [u8; 4], count: u32, threads_per_core: u32) -> Template {
        let mut extensions = leaf(0x8000_0001, 0, 0);
        extensions.ecx = AMD_TOPOLOGY_EXTENSIONS;
        Template {
            entries: vec![
                leaf(0, 0x1f, u32::from_le_bytes(vendor)),
                leaf(1, 0, 0xaabb_0800),
                leaf(4, 0xffff_c121, 0),
                leaf(4, 0xffff_c163, 0),
                leaf(0xb, 7, 7),
                extensions,
                leaf(0x8000_0008, 0x3030, 0),
                leaf(0x8000_001d, 0xffff_c163, 0),
            ],
            topology: Topology {
                count,
                threads_per_core,
            },
            deadline_timer: true,
        }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_identifier_everywhere() {
        let entries = template(*b"Auth", 4, 2).entries_for(3);
        assert_eq!(find(&entries, 1, 0).ebx, 0x0304_0800);
        assert_eq!(find(&entries, 0xb, 0).edx, 3);
        assert_eq!(find(&entries, 0x1f, 1).edx, 3);
        let identifiers = find(&entries, 0x8000_001e, 0);
        assert_eq!((identifiers.eax, identifiers.ebx), (3, 0x0101));
    }

    #[test]
    fn levels_count_threads_and_cores() {
        let entries = template(*b"Genu", 6, 2).entries_for(0);
        let threads = find(&entries, 0xb, 0);
        assert_eq!((threads.eax, threads.ebx, threads.ecx), (1, 2, 0x100));
        let cores = find(&entries, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 6, 0x201));
        assert_eq!(find(&entries, 0xb, 2).ebx, 0);
        assert_eq!(entries.iter().filter(|e| e.function == 0xb).count(), 3);
    }

    #[test]
    fn caches_are_shared_by_the_core_or_by_all() {
        let entries = template(*b"Genu", 4, 2).entries_for(0);
        let caches: Vec<u32> = entries.iter().filter(|e| e.function == 4).map(|e| e.eax).collect();
        assert_eq!(caches, [0x121 | 1 << 14 | 1 << 26, 0x163 | 3 << 14 | 1 << 26]);
        assert_eq!(find(&entries, 0x8000_001d, 0).eax, 0x163 | 3 << 14);
    }

    #[test]
    fn a_single_vcpu_has_no_neighbours() {
        let entries = template(*b"Auth", 1, 1).entries_for(0);
        assert_eq!(find(&entries, 1, 0).edx & HTT, 0);
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx & AMD_CMP_LEGACY, 0);
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 0);
        assert_eq!(find(&entries, 0xb, 1).eax, 0);
    }

    #[test]
    fn only_amd_counts_threads_in_its_own_leaf() {
        let ecx = |vendor| find(&template(vendor, 4, 1).entries_for(0), 0x8000_0008, 0).ecx;
        assert_eq!(ecx(*b"Auth"), 3 | 2 << 12);
        assert_eq!(ecx(*b"Genu"), 0);
    }
}
