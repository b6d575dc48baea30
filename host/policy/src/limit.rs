//! The limits of one instance, and the gate that bounds how many there are.
//!
//! Wasmtime limits each memory by itself; a policy with four memories would get four
//! times its share. [`Meter`] therefore sums over all memories and tables of a store.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wasmtime::ResourceLimiter;

use crate::config::Limits;

/// Core instances in one store; a bound for what dynamic instantiation could do.
const INSTANCES_MAX: usize = 256;

/// Counts what the memories and tables of one store hold, and refuses beyond the limit.
#[derive(Debug)]
pub(crate) struct Meter {
    memory_bytes: u64,
    memory_limit: u64,
    table_elements: u64,
    table_limit: u64,
    refused: Option<String>,
}

impl Meter {
    pub fn new(limits: &Limits) -> Self {
        Self {
            memory_bytes: 0,
            memory_limit: limits.memory_bytes,
            table_elements: 0,
            table_limit: limits.table_elements,
            refused: None,
        }
    }

    /// What was refused last, so that the trap which usually follows is told as what it
    /// is: a guest that ran out of memory.
    pub fn take_refusal(&mut self) -> Option<String> {
        self.refused.take()
    }

    /// Bytes in all memories.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = self.memory_bytes + (desired - current) as u64;
        if wanted > self.memory_limit {
            self.refused = Some(format!(
                "{wanted} bytes of memory wanted, limit {} (limits.memory_bytes)",
                self.memory_limit
            ));
            return Ok(false);
        }
        self.memory_bytes = wanted;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = self.table_elements + (desired - current) as u64;
        if wanted > self.table_limit {
            self.refused = Some(format!(
                "{wanted} table elements wanted, limit {} (limits.table_elements)",
                self.table_limit
            ));
            return Ok(false);
        }
        self.table_elements = wanted;
        Ok(true)
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn memories(&self) -> usize {
        crate::engine::MEMORIES_MAX as usize
    }

    fn tables(&self) -> usize {
        crate::engine::TABLES_MAX as usize
    }
}

/// Bounds the number of live instances. A full house is a bounded wait, never an error of
/// the allocator.
#[derive(Debug)]
pub(crate) struct Gate {
    free: Mutex<u32>,
    returned: Condvar,
    total: u32,
}

/// The right to hold one instance; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    gate: Option<Arc<Gate>>,
}

impl Permit {
    /// For what has a place of its own in the pool: admission, shadows, ready instances.
    pub fn spare() -> Self {
        Self { gate: None }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(gate) = &self.gate {
            *gate.lock() += 1;
            gate.returned.notify_one();
        }
    }
}

impl Gate {
    pub fn new(total: u32) -> Self {
        Self {
            free: Mutex::new(total),
            returned: Condvar::new(),
            total,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, u32> {
        // A number cannot be left half-changed, so a poisoned lock is still good.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Instances alive now.
    pub fn used(&self) -> u32 {
        self.total - *self.lock()
    }

    /// A permit, and whether it had to be waited for; `None` when `wait` is over.
    pub fn enter(self: &Arc<Self>, wait: Duration) -> Option<(Permit, bool)> {
        let mut free = self.lock();
        let mut waited = false;
        let until = Instant::now() + wait;
        while *free == 0 {
            waited = true;
            let left = until.checked_duration_since(Instant::now())?;
            free = self
                .returned
                .wait_timeout(free, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        *free -= 1;
        let permit = Permit {
            gate: Some(Arc::clone(self)),
        };
        Some((permit, waited))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_memories_share_one_limit() {
        let mut meter = Meter::new(&Limits {
            memory_bytes: 100,
            ..Limits::default()
        });
        assert!(meter.memory_growing(0, 60, None).unwrap());
        assert!(!meter.memory_growing(0, 60, None).unwrap());
        assert!(meter.take_refusal().unwrap().contains("limit 100"));
        assert!(meter.memory_growing(0, 40, None).unwrap());
        assert_eq!(meter.memory_bytes(), 100);
    }

    #[test]
    fn a_full_gate_waits_then_gives_up_and_opens_again() {
        let gate = Arc::new(Gate::new(1));
        let (first, waited) = gate.enter(Duration::ZERO).unwrap();
        assert!(!waited);
        assert!(gate.enter(Duration::from_millis(1)).is_none());
        let other = Arc::clone(&gate);
        let waiter = std::thread::spawn(move || other.enter(Duration::from_secs(60)).is_some());
        drop(first);
        assert!(waiter.join().unwrap());
        assert_eq!(gate.used(), 0);
    }
}
