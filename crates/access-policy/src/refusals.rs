//! Every reason for which `decide` refuses: the closed table of codes 1 to 99. `session-state` has 100 and up. Each code
//! has a page `docs/refusals/WEIR-nnn.md`.

use crate::decide::{Refusal, RefusalCode, RuleRef};

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Why {
    NoPolicy,
    Syntax,
    TooComplex,
    UnknownName,
    NotRead,
    RecheckFailed,
    DeniedByRule,
    NoRuleAllows,
    Closed,
    NotBoundYet,
    SystemRelation,
    NeedsWhere,
    AffectedRowsUncountable,
    FunctionDenied,
    UserDefined,
    UnlistedFunction,
    RunsSql,
    ReadsUnknownRows,
    Channel,
    ServerFiles,
    ServerPrograms,
    ProtectedDefinition,
    ProtectedTruncate,
    Claim,
    CannotGovern,
    CopiesMasked,
    WireMaskUsed,
    Setting,
}

impl Why {
    /// Every reason.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 28] = [
        Self::NoPolicy,
        Self::Syntax,
        Self::TooComplex,
        Self::UnknownName,
        Self::NotRead,
        Self::RecheckFailed,
        Self::DeniedByRule,
        Self::NoRuleAllows,
        Self::Closed,
        Self::NotBoundYet,
        Self::SystemRelation,
        Self::NeedsWhere,
        Self::AffectedRowsUncountable,
        Self::FunctionDenied,
        Self::UserDefined,
        Self::UnlistedFunction,
        Self::RunsSql,
        Self::ReadsUnknownRows,
        Self::Channel,
        Self::ServerFiles,
        Self::ServerPrograms,
        Self::ProtectedDefinition,
        Self::ProtectedTruncate,
        Self::Claim,
        Self::CannotGovern,
        Self::CopiesMasked,
        Self::WireMaskUsed,
        Self::Setting,
    ];

    /// (code, SQLSTATE, the mend)
    pub(crate) fn entry(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::NoPolicy => (
                2,
                "42501",
                "write a DatabaseAccessPolicy that names this database",
            ),
            Self::Syntax => (3, "42601", "mend the statement"),
            Self::TooComplex => (4, "54001", "split the statement"),
            Self::UnknownName => (
                5,
                "42P01",
                "check the name; what was just created may need a moment to be known",
            ),
            Self::NotRead => (
                6,
                "42501",
                "write the statement in another way; what is not understood is not sent",
            ),
            Self::RecheckFailed => (
                7,
                "42501",
                "report this statement: Weir's own check of what it would send failed",
            ),
            Self::DeniedByRule => (10, "42501", "ask the policy's owner, or do without"),
            Self::NoRuleAllows => (11, "42501", "ask for an access rule that allows it"),
            Self::Closed => (
                12,
                "42501",
                "mend the policy, so that every name in it is one of the database",
            ),
            Self::NotBoundYet => (13, "42501", "commit, and try again in a moment"),
            Self::SystemRelation => (14, "42501", "an access rule that names the relation opens it"),
            Self::NeedsWhere => (20, "42501", "add a WHERE that compares a column with a value"),
            Self::AffectedRowsUncountable => {
                (24, "42501", "use DELETE with a WHERE, or lift maxAffectedRows")
            }
            Self::FunctionDenied => (
                30,
                "42501",
                "do without it, or take it out of guardrails.functions.deny",
            ),
            Self::UserDefined => (
                31,
                "42501",
                "name it in guardrails.functions.allow, or set userDefined: Allow",
            ),
            Self::UnlistedFunction => (
                32,
                "42501",
                "name it in guardrails.functions.allow after a review",
            ),
            Self::RunsSql => (33, "42501", "run the SQL itself"),
            Self::ReadsUnknownRows => (34, "42501", "name the relation in the statement itself"),
            Self::Channel => (35, "42501", "name the channel in guardrails.channels"),
            Self::ServerFiles => (
                36,
                "42501",
                "use COPY with STDIN or STDOUT, or guardrails.serverAccess.files: Allow",
            ),
            Self::ServerPrograms => (
                37,
                "42501",
                "use COPY with STDIN or STDOUT, or guardrails.serverAccess.programs: Allow",
            ),
            Self::ProtectedDefinition => (
                40,
                "42501",
                "change the definition without Weir, with the policy's owner",
            ),
            Self::ProtectedTruncate => (
                41,
                "42501",
                "use DELETE, which keeps to the rows that may be seen",
            ),
            Self::Claim => (42, "42501", "give the claim a value that fits the column"),
            Self::CannotGovern => (
                43,
                "42501",
                "write the statement in another way, or leave the protected columns out",
            ),
            Self::CopiesMasked => (44, "42501", "leave the masked column out"),
            Self::WireMaskUsed => (
                45,
                "42501",
                "select the column as it is, without computing with it",
            ),
            Self::Setting => (46, "42501", "leave the setting as it is"),
        }
    }

    /// A refusal for this reason.
    pub(crate) fn refuse(self, rule: RuleRef, reason: impl Into<String>) -> Refusal {
        let (code, sqlstate, hint) = self.entry();
        Refusal {
            code: RefusalCode(code),
            sqlstate,
            rule,
            reason: reason.into(),
            position: None,
            hint: format!("{hint} (docs/refusals/WEIR-{code:03}.md)"),
        }
    }
}

/// The rule of what holds without a policy.
pub(crate) fn built_in(rule: &str) -> RuleRef {
    RuleRef {
        policy: "weir".to_owned(),
        rule: rule.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::Why;

    #[test]
    fn every_code_is_one_reason_and_has_its_page() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/refusals");
        let mut seen = std::collections::BTreeSet::new();
        for why in Why::ALL {
            let (code, sqlstate, mend) = why.entry();
            assert!(seen.insert(code), "{why:?} has the code of another");
            assert!((1..100).contains(&code) && sqlstate.len() == 5 && !mend.is_empty());
            let page = folder.join(format!("WEIR-{code:03}.md"));
            let text = std::fs::read_to_string(&page).unwrap_or_default();
            for part in [
                &format!("# WEIR-{code:03}"),
                "## What to check",
                "## The mend",
                sqlstate,
            ] {
                assert!(text.contains(part), "{} lacks {part:?}", page.display());
            }
        }
    }
}
