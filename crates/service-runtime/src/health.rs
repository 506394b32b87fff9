//! Alive and ready.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Named conditions of readiness. Ready = all of them were met.
#[derive(Debug, Clone, Default)]
pub struct Health {
    conditions: Arc<Mutex<BTreeMap<&'static str, bool>>>,
}

impl Health {
    /// With these conditions, none met.
    pub fn new(conditions: &[&'static str]) -> Self {
        let conditions = conditions.iter().map(|name| (*name, false)).collect();
        Self {
            conditions: Arc::new(Mutex::new(conditions)),
        }
    }

    /// Sets a condition.
    pub fn set(&self, condition: &'static str, met: bool) {
        self.lock().insert(condition, met);
    }

    /// Conditions that are not met.
    pub fn missing(&self) -> Vec<&'static str> {
        self.lock()
            .iter()
            .filter(|(_, met)| !**met)
            .map(|(name, _)| *name)
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, bool>> {
        // A map of flags is right whatever panicked while holding it.
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
