//! `maxAffectedRows`: what counts, and what would commit.

use super::*;

/// Whether a statement would commit.
pub(super) fn commits(judged: &Judged) -> bool {
    matches!(
        judged.kind(),
        Some(StatementKind::Commit { .. } | StatementKind::TwoPhase)
    ) || judged.permit.facts().is_none()
}

/// Whether it may change rows that count against `maxAffectedRows`: all but those that plain INSERT and COPY add.
pub(super) fn is_counted(judged: &Judged) -> bool {
    judged.permit.facts().is_none_or(|facts| {
        judged.changes_beside_tag
            || matches!(
                facts.kind,
                StatementKind::Merge | StatementKind::Execute(_) | StatementKind::Call
            )
            || facts.actions.iter().any(|action| {
                matches!(
                    action.action,
                    sql_facts::facts::Action::Update | sql_facts::facts::Action::Delete
                )
            })
    })
}

pub(super) fn over_limit(session: &Session, list: &[Arc<Judged>]) -> Option<Refusal> {
    let rows_max = session.world.policy.guardrails.max_affected_rows?;
    if session.affected <= rows_max {
        return None;
    }
    let rule = list
        .iter()
        .find_map(|judged| {
            judged
                .permit
                .limits()
                .affected_rows_max
                .as_ref()
                .map(|(_, rule)| rule.clone())
        })
        .unwrap_or_else(affected_rule);
    Some(refusals::too_many_changes(session.affected, rows_max, rule))
}

/// The rule's name where no permit is at hand.
pub(crate) fn affected_rule() -> access_policy::RuleRef {
    access_policy::RuleRef {
        policy: String::new(),
        rule: "guardrails.maxAffectedRows".to_owned(),
    }
}
