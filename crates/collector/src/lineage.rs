//! Column lineage out of receipts: which columns, and which readers, a column reached, and where it came from.
//!
//! A node is `schema.relation.column`. A temporary relation's columns carry their session in front
//! (`session:1a2b3c4d/pg_temp.t.c`), because two sessions' relations of one name are two things. What a client reads goes
//! to the node of its reader (`run:…`, else `agent:…`, `user:…`, `workload:…`, `database_user:…`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use receipts::{Action, RelationAction, SessionId, Transformation};
use rusqlite::params;
use serde::{Deserialize, Serialize};

use crate::index::{Index, IndexError};

/// Nodes one question may visit.
const NODES_MAX: usize = 10_000;

/// Against or with the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Where it comes from.
    Upstream,
    /// Where it went.
    Downstream,
}

/// One step of the flow, over all statements that made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// From.
    pub source: String,
    /// To.
    pub target: String,
    /// How, as in OpenLineage (`IDENTITY`, `FILTER` …).
    pub transformation: String,
    /// Whether the value itself flows, or only decides.
    pub direct: bool,
    /// Mask that was applied.
    pub mask: Option<String>,
    /// Statements.
    pub count: u64,
    /// Earliest, in microseconds since 1970-01-01 UTC.
    pub first_us: i64,
    /// Latest.
    pub last_us: i64,
    /// Log index of the latest.
    pub last_index: u64,
    /// Steps from what was asked for; 1 is next to it.
    pub depth: u32,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// What was asked for, as it is called in receipts; empty when no receipt knows it.
    pub nodes: Vec<String>,
    /// Against or with the flow.
    pub direction: Direction,
    /// Steps, nearest first.
    pub edges: Vec<Edge>,
    /// The answer was cut.
    pub cut: bool,
}

pub(crate) struct NewEdge {
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) transformation: &'static str,
    pub(crate) mask: String,
}

/// The steps of one statement that ran.
pub(crate) fn edges_of(session: Option<SessionId>, action: &Action) -> Vec<NewEdge> {
    let what = &action.start.what;
    let reader = reader(session, action);
    let mut edges = Vec::new();
    let mut targets = BTreeSet::new();
    for column in &what.output {
        let target = match &column.target {
            Some(target) => {
                let target = node(session, target);
                if let Some((relation, _)) = target.rsplit_once('.') {
                    targets.insert(relation.to_owned());
                }
                target
            }
            None => {
                targets.insert(reader.clone());
                reader.clone()
            }
        };
        if column.sources.is_empty() && column.target.is_some() {
            // A value that the client gave: it may come from anything this reader was given.
            edges.push(NewEdge {
                source: reader.clone(),
                target: target.clone(),
                transformation: "CLIENT",
                mask: String::new(),
            });
        }
        for source in &column.sources {
            edges.push(NewEdge {
                source: node(session, &source.column),
                target: target.clone(),
                transformation: source.transformation.name(),
                mask: column.mask.clone().unwrap_or_default(),
            });
        }
    }
    if targets.is_empty() {
        // A DELETE, or a write whose columns are not told apart: what decides its rows flows to the relation.
        for relation in &what.relations {
            match relation.action {
                RelationAction::Insert | RelationAction::Update | RelationAction::Delete => {
                    targets.insert(node(session, &relation.name));
                }
                RelationAction::Select
                | RelationAction::Truncate
                | RelationAction::Ddl
                | RelationAction::Call
                | RelationAction::Admin => {}
            }
        }
    }
    for filter in &what.filters {
        for target in &targets {
            let target = if *target == reader {
                target.clone()
            } else {
                format!("{target}.*")
            };
            edges.push(NewEdge {
                source: node(session, &filter.column),
                target,
                transformation: filter.transformation.name(),
                mask: String::new(),
            });
        }
    }
    edges
}

fn node(session: Option<SessionId>, name: &str) -> String {
    match (session, name.split_once('.')) {
        (Some(session), Some((schema, rest))) if schema.starts_with("pg_temp") => {
            let short: String = session.to_string().chars().take(8).collect();
            // The server calls the schema `pg_temp_3`, who makes the relation does not know the number yet.
            format!("session:{short}/pg_temp.{rest}")
        }
        _ => name.to_owned(),
    }
}

fn reader(session: Option<SessionId>, action: &Action) -> String {
    let who = &action.start.who;
    let named = [
        ("run", &who.run),
        ("agent", &who.agent),
        ("user", &who.user),
        ("workload", &who.workload),
        ("database_user", &who.database_user),
    ];
    for (word, claim) in named {
        if let Some(value) = &claim.value {
            return format!("{word}:{value}");
        }
    }
    match session {
        Some(session) => format!("session:{session}"),
        None => "unknown".to_owned(),
    }
}

impl Index {
    /// Follows the flow from a relation or column. Statements that were rolled back moved nothing.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn lineage(&self, name: &str, direction: Direction) -> Result<Lineage, IndexError> {
        let start = self.nodes_named(name)?;
        let mut seen: BTreeSet<String> = start.iter().cloned().collect();
        let mut queue: VecDeque<(String, u32)> = start.iter().map(|node| (node.clone(), 0)).collect();
        let mut edges = BTreeMap::new();
        let mut cut = false;
        while let Some((node, depth)) = queue.pop_front() {
            for mut edge in self.edges_at(&node, direction)? {
                let (next, key) = match direction {
                    Direction::Upstream => (edge.source.clone(), edge_key(&edge)),
                    Direction::Downstream => (edge.target.clone(), edge_key(&edge)),
                };
                edge.depth = depth + 1;
                edges.entry(key).or_insert(edge);
                // Only a run is short enough that what it read may be what it wrote.
                let goes_on = !is_reader(&next) || next.starts_with("run:");
                if goes_on && !seen.contains(&next) {
                    if seen.len() >= NODES_MAX {
                        cut = true;
                        continue;
                    }
                    seen.insert(next.clone());
                    queue.push_back((next, depth + 1));
                }
            }
        }
        let mut edges: Vec<Edge> = edges.into_values().collect();
        edges.sort_by(|a, b| {
            (a.depth, &a.source, &a.target, &a.transformation).cmp(&(
                b.depth,
                &b.source,
                &b.target,
                &b.transformation,
            ))
        });
        Ok(Lineage {
            nodes: start,
            direction,
            edges,
            cut,
        })
    }

    /// The nodes that a name means: a column, or all columns of a relation; the schema may be left out.
    fn nodes_named(&self, name: &str) -> Result<Vec<String>, IndexError> {
        let escaped = name.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
        let mut statement = self.connection.prepare(
            "SELECT DISTINCT node FROM (SELECT source AS node FROM edges UNION SELECT target FROM edges)
             WHERE node = ?1 OR node LIKE ?2 ESCAPE '\\' OR node LIKE ?3 ESCAPE '\\' OR node LIKE ?4 ESCAPE '\\'
                OR node LIKE ?5 ESCAPE '\\'
             ORDER BY node",
        )?;
        let rows = statement.query_map(
            params![
                name,
                format!("{escaped}.%"),
                format!("%.{escaped}"),
                format!("%.{escaped}.%"),
                format!("session:%/{escaped}.%")
            ],
            |row| row.get::<_, String>(0),
        )?;
        let found: Vec<String> = rows.collect::<Result<_, _>>()?;
        // `orders` is a relation before it is a column of that name.
        let is_reader = |node: &String| is_reader(node) && node != name;
        let columns: Vec<String> = found.into_iter().filter(|node| !is_reader(node)).collect();
        let parts = name.split('.').count();
        let as_relation: Vec<String> = columns
            .iter()
            .filter(|node| {
                let bare = node.rsplit_once('/').map_or(node.as_str(), |(_, bare)| bare);
                bare.rsplit_once('.').is_some_and(|(relation, _)| {
                    relation == name || (parts == 1 && relation.ends_with(&format!(".{name}")))
                })
            })
            .cloned()
            .collect();
        if as_relation.is_empty() {
            let star = columns
                .iter()
                .filter_map(|node| node.rsplit_once('.'))
                .map(|(relation, _)| format!("{relation}.*"));
            let mut all: BTreeSet<String> = columns.iter().cloned().collect();
            all.extend(star.filter(|_| parts > 1));
            return Ok(all.into_iter().collect());
        }
        Ok(as_relation)
    }

    fn edges_at(&self, node: &str, direction: Direction) -> Result<Vec<Edge>, IndexError> {
        let column = match direction {
            Direction::Upstream => "target",
            Direction::Downstream => "source",
        };
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT e.source, e.target, e.transformation, e.mask, count(*), min(e.time_us), max(e.time_us), max(e.idx)
             FROM edges e LEFT JOIN transactions x ON x.session = e.session AND x.number = e.txn
             WHERE e.{column} = ?1 AND coalesce(x.state, 'committed') NOT IN ('rolled_back', 'failed')
             GROUP BY e.source, e.target, e.transformation, e.mask ORDER BY 1, 2, 3, 4"
        ))?;
        let rows = statement.query_map([node], |row| {
            let (transformation, mask): (String, String) = (row.get(2)?, row.get(3)?);
            Ok(Edge {
                source: row.get(0)?,
                target: row.get(1)?,
                direct: is_direct(&transformation),
                transformation,
                mask: (!mask.is_empty()).then_some(mask),
                count: row.get(4)?,
                first_us: row.get(5)?,
                last_us: row.get(6)?,
                last_index: row.get(7)?,
                depth: 0,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn edge_key(edge: &Edge) -> (String, String, String, Option<String>) {
    (
        edge.source.clone(),
        edge.target.clone(),
        edge.transformation.clone(),
        edge.mask.clone(),
    )
}

fn is_direct(transformation: &str) -> bool {
    [
        Transformation::Identity,
        Transformation::Transformation,
        Transformation::Aggregation,
    ]
    .iter()
    .any(|direct| direct.name() == transformation)
}

fn is_reader(node: &str) -> bool {
    node == "unknown"
        || ["run:", "agent:", "user:", "workload:", "database_user:"]
            .iter()
            .any(|word| node.starts_with(word))
        || (node.starts_with("session:") && !node.contains('/'))
}
