//! What happens to the rows of a statement on their way to the client: the wire check, columns that are stripped,
//! cells that are masked on the wire, and the origins that are written back into the description.

use std::collections::{BTreeMap, BTreeSet};

use access_policy::{Permit, SendAs};
use row_masking::WireMask;
use sql_facts::facts::Transformation;
use sql_facts::{AttNum, Oid, StatementKind};

/// How the result of one judged statement is treated. Empty for most.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResultPlan {
    /// Server columns (from 0) that the client did not ask for.
    pub strip: BTreeSet<usize>,
    /// Server columns masked on the wire.
    pub wire_masks: BTreeMap<usize, WireMask>,
    /// (relation, attribute) pairs that must not appear raw in a description, unless masked on the wire.
    pub forbidden: BTreeSet<(Oid, AttNum)>,
    /// True origin of server columns that are a masked column, for drivers that read names through it.
    pub origins: BTreeMap<usize, (Oid, AttNum)>,
    /// The text was wrapped in a SELECT that counts: answer this tag with the count.
    pub count_as: Option<String>,
    /// Rule of the filter that written rows are checked against.
    pub check_rule: Option<String>,
    /// (byte in what was sent, byte in the client's text), ascending; `None`: sent as written.
    pub positions: Option<Vec<(usize, usize)>>,
}

impl ResultPlan {
    /// From a permit.
    pub fn from_permit(permit: &Permit) -> Self {
        let mut plan = Self {
            forbidden: permit.forbidden_origins().clone(),
            ..Self::default()
        };
        let SendAs::Governed(governed) = permit.send() else {
            return plan;
        };
        plan.strip = governed.strip.iter().copied().collect();
        plan.wire_masks = governed.wire_masks.clone();
        plan.count_as = governed.count_as.clone();
        plan.check_rule = governed.check_rule.clone();
        plan.positions = Some(governed.positions.clone());
        if let Some(facts) = permit
            .facts()
            .filter(|facts| !matches!(facts.kind, StatementKind::Explain { .. }))
        {
            // The client's columns in order, counted past the stripped ones.
            let mut server = 0usize;
            for output in facts.output.iter().filter(|output| output.target.is_none()) {
                while plan.strip.contains(&server) {
                    server += 1;
                }
                let mut sources = output.sources.iter();
                if let (Some(only), None) = (sources.next(), sources.next())
                    && only.transformation == Transformation::Identity
                    && only.column.column > 0
                {
                    plan.origins
                        .insert(server, (only.column.relation, only.column.column));
                }
                server += 1;
            }
        }
        plan
    }

    /// Rows can be forwarded as they come.
    pub fn is_plain(&self) -> bool {
        self.strip.is_empty() && self.wire_masks.is_empty() && self.count_as.is_none()
    }
}
