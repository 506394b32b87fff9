//! Where values come from: sets of origins, and how they compose from step to step.

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::{ColumnId, Source, Transformation};

/// Something a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Atom {
    /// A column of a relation.
    Column(ColumnId),
    /// A column of a recursive CTE whose own lineage is not known yet.
    Recursive {
        /// Which one.
        cte: usize,
        /// Position of the column.
        column: usize,
    },
}

/// Origins with how each one contributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lineage(BTreeSet<(Atom, Transformation)>);

impl Lineage {
    /// One column as it is.
    pub(crate) fn column(column: ColumnId) -> Self {
        Self(BTreeSet::from([(Atom::Column(column), Transformation::Identity)]))
    }

    /// A column of a recursive CTE as it is.
    pub(crate) fn recursive(cte: usize, column: usize) -> Self {
        Self(BTreeSet::from([(
            Atom::Recursive { cte, column },
            Transformation::Identity,
        )]))
    }

    /// Adds all origins of `other`, each one seen through `how`.
    pub(crate) fn add(&mut self, other: &Self, how: Transformation) {
        self.0
            .extend(other.0.iter().map(|(atom, inner)| (*atom, compose(how, *inner))));
    }

    /// The same origins, seen through `how`.
    pub(crate) fn through(&self, how: Transformation) -> Self {
        let mut lineage = Self::default();
        lineage.add(self, how);
        lineage
    }

    /// Replaces what came through that recursive CTE by what its columns come from.
    pub(crate) fn substitute(&self, cte: usize, columns: &[Self]) -> Self {
        let mut lineage = Self::default();
        for (atom, how) in &self.0 {
            match atom {
                Atom::Recursive { cte: of, column } if *of == cte => {
                    if let Some(inner) = columns.get(*column) {
                        lineage.add(inner, *how);
                    }
                }
                Atom::Column(_) | Atom::Recursive { .. } => {
                    lineage.0.insert((*atom, *how));
                }
            }
        }
        lineage
    }

    /// The columns of relations among the origins.
    pub(crate) fn sources(&self) -> BTreeSet<Source> {
        self.0
            .iter()
            .filter_map(|(atom, transformation)| match atom {
                Atom::Column(column) => Some(Source {
                    column: *column,
                    transformation: *transformation,
                }),
                Atom::Recursive { .. } => None,
            })
            .collect()
    }

    fn without_recursive(&self, cte: usize) -> Self {
        Self(
            self.0
                .iter()
                .filter(|(atom, _)| !matches!(atom, Atom::Recursive { cte: of, .. } if *of == cte))
                .copied()
                .collect(),
        )
    }
}

/// What the columns of a recursive CTE come from, once its own mentions of itself are followed to the end.
pub(crate) fn close_recursion(cte: usize, columns: &[Lineage]) -> Vec<Lineage> {
    let mut closed: Vec<Lineage> = columns
        .iter()
        .map(|column| column.without_recursive(cte))
        .collect();
    loop {
        let next: Vec<Lineage> = columns
            .iter()
            .map(|column| column.substitute(cte, &closed))
            .collect();
        if next == closed {
            return closed;
        }
        closed = next;
    }
}

/// How a value contributes that first passed `inner` and then `outer`.
fn compose(outer: Transformation, inner: Transformation) -> Transformation {
    let rank = |how: Transformation| match how {
        Transformation::Identity => Some(0),
        Transformation::Transformation => Some(1),
        Transformation::Aggregation => Some(2),
        Transformation::Join
        | Transformation::GroupBy
        | Transformation::Filter
        | Transformation::Sort
        | Transformation::Window
        | Transformation::Conditional => None,
    };
    match (rank(outer), rank(inner)) {
        (None, _) => outer,
        (Some(_), None) => inner,
        (Some(outer_rank), Some(inner_rank)) => {
            if outer_rank >= inner_rank {
                outer
            } else {
                inner
            }
        }
    }
}

/// Lineages of recursive CTEs that are known by now, for what was noted before they were.
pub(crate) type Solved = BTreeMap<usize, Vec<Lineage>>;

/// Follows every mention of a recursive CTE.
pub(crate) fn settle(lineage: &Lineage, solved: &Solved) -> Lineage {
    let mut settled = lineage.clone();
    // Inner CTEs have higher numbers than the ones they stand in, and may mention those.
    for (cte, columns) in solved.iter().rev() {
        settled = settled.substitute(*cte, columns);
    }
    settled
}
