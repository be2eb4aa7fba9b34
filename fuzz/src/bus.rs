//! The bus, against a list that is searched from its beginning.

use std::sync::{Arc, Mutex};

use arbitrary::{Result, Unstructured};
use husk_devices::bus::{Bus, BusDevice};

/// Remembers the offset and the length of the last access.
#[derive(Default)]
struct Last(Option<(u64, usize)>);

impl BusDevice for Last {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0 = Some((offset, data.len()));
        data.fill(0x5a);
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0 = Some((offset, data.len()));
    }
}

pub fn run(data: &[u8]) {
    // A script that ends in the middle of a step has ended.
    let _ = follow(&mut Unstructured::new(data));
}

fn follow(script: &mut Unstructured<'_>) -> Result<()> {
    let mut bus = Bus::new();
    let mut model: Vec<(u128, u128, Arc<Mutex<Last>>)> = Vec::new();
    while !script.is_empty() {
        let address = match script.int_in_range(0..=3_u8)? {
            0 => script.arbitrary::<u64>()?,
            1 => u64::MAX - u64::from(script.arbitrary::<u8>()?),
            _ => u64::from(script.arbitrary::<u8>()?),
        };
        let (start, step) = (u128::from(address), script.int_in_range(0..=2_u8)?);
        if step == 0 {
            let length = match script.arbitrary::<u8>()? {
                0 => script.arbitrary()?,
                length => u64::from(length % 32),
            };
            let end = start + u128::from(length);
            let fits = length > 0 && end <= 1 << 64;
            let free = model.iter().all(|(from, to, _)| end <= *from || *to <= start);
            let device = Arc::new(Mutex::new(Last::default()));
            let inserted = bus.insert(address, length, device.clone());
            assert_eq!(inserted.is_ok(), fits && free, "{address:#x} {length:#x}");
            if inserted.is_ok() {
                model.push((start, end, device));
            }
            continue;
        }
        let mut bytes = [0; 8];
        let width = script.int_in_range(0..=8)?;
        let end = start + width as u128;
        let found = model
            .iter()
            .find(|(from, to, _)| width > 0 && *from <= start && end <= *to);
        let reached = match step {
            1 => bus.read(address, &mut bytes[..width]),
            _ => bus.write(address, &bytes[..width]),
        };
        assert_eq!(reached, found.is_some(), "{address:#x} {width}");
        if step == 1 {
            let value = if reached { 0x5a } else { 0xff };
            assert!(bytes[..width].iter().all(|byte| *byte == value));
        }
        if let Some((from, _, device)) = found {
            let expected = Some(((start - from) as u64, width));
            assert_eq!(device.lock().unwrap().0.take(), expected);
        }
    }
    Ok(())
}
