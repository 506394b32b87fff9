//! Whether a condition restricts the rows of a write's target, for `requireWhere`.

/// What is known of a value when it is used as a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Condition {
    /// It compares the target with something that does not come from the same row.
    pub(crate) restricts: bool,
    /// Its negation does.
    pub(crate) negation_restricts: bool,
    /// It is made of comparisons, so that comparing it with a constant adds nothing.
    pub(crate) boolean: bool,
}

impl Condition {
    /// A comparison, for which both ways count.
    pub(crate) fn comparison(restricts: bool) -> Self {
        Self {
            restricts,
            negation_restricts: restricts,
            boolean: true,
        }
    }

    /// NOT.
    pub(crate) fn negated(self) -> Self {
        Self {
            restricts: self.negation_restricts,
            negation_restricts: self.restricts,
            boolean: true,
        }
    }

    /// AND: one side is enough; its negation is an OR.
    pub(crate) fn all_of(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut together = Self {
            restricts: false,
            negation_restricts: true,
            boolean: true,
        };
        for part in parts {
            together.restricts |= part.restricts;
            together.negation_restricts &= part.negation_restricts;
        }
        together
    }

    /// OR: every side must restrict.
    pub(crate) fn any_of(parts: impl IntoIterator<Item = Self>) -> Self {
        Self::all_of(parts.into_iter().map(Self::negated)).negated()
    }
}
