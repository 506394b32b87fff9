//! Capture by variables: literal values that name a governed host are rewritten to where the sidecar listens.
//!
//! Only the host changes: the sidecar listens on the database's own port. Users, passwords and options stay as they
//! are, to the byte.

use std::collections::BTreeSet;
use std::ops::Range;

use access_policy::Endpoint;
use crd_types::DatabaseAccessPolicy;
use serde_json::Value;

use crate::capture::Plan;
use crate::captured_before;
use crate::checks::{inner, items, name};
use crate::contract::{CONTAINER, Captured};
use crate::edit::Editor;
use crate::refusal::{Reason, Refusal};
use crate::settings::Settings;
use crate::{aliases, endpoints};

const DEFAULT_PORT: u16 = 5432;

/// What a variable holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Host,
    Port,
    Url,
}

/// A variable that some policy names, and where it may lead.
#[derive(Debug)]
struct Variable {
    name: String,
    kind: Kind,
    policies: Vec<String>,
    endpoints: Vec<Endpoint>,
}

/// Rewrites the variables of all containers but the sidecar.
pub(crate) fn rewrite(
    editor: &mut Editor,
    policies: &[&DatabaseAccessPolicy],
    plan: &Plan,
    settings: &Settings,
    refusals: &mut Vec<Refusal>,
) {
    let variables = variables(policies);
    if variables.is_empty() {
        return;
    }
    let before = captured_before(editor.pod());
    let mut found: BTreeSet<(String, Kind)> = BTreeSet::new();
    for list in ["initContainers", "containers"] {
        let containers: Vec<Value> = items(editor.pod(), list).cloned().collect();
        for (at, container) in containers.iter().enumerate() {
            let proxy =
                list == "initContainers" && settings.network_proxies.iter().any(|it| it == name(container));
            if name(container) == CONTAINER || proxy {
                continue;
            }
            for variable in &variables {
                let target = Target {
                    plan,
                    before: &before,
                    variable,
                };
                let mut literal = false;
                for (index, entry) in inner(container, "env").enumerate() {
                    if name(entry) != variable.name {
                        continue;
                    }
                    found.insert((variable.name.clone(), variable.kind));
                    literal = true;
                    match rewritten(entry, &target) {
                        Ok(Some(value)) => {
                            editor.set(
                                &format!("/spec/{list}/{at}/env/{index}"),
                                "value",
                                Value::String(value),
                            );
                        }
                        Ok(None) => {}
                        Err(problem) => refusals.push(problem.refusal(name(container), variable)),
                    }
                }
                if !literal && from_source(container, &variable.name) {
                    found.insert((variable.name.clone(), variable.kind));
                    refusals.push(Problem::FromSource.refusal(name(container), variable));
                }
            }
        }
    }
    missing(policies, &found, refusals);
}

fn variables(policies: &[&DatabaseAccessPolicy]) -> Vec<Variable> {
    let mut variables: Vec<Variable> = Vec::new();
    for policy in policies.iter().filter(|policy| !aliases(policy)) {
        let Some(env) = &policy.spec.database.capture.env else {
            continue;
        };
        let kinds = [
            (Kind::Host, &env.host_variables),
            (Kind::Port, &env.port_variables),
            (Kind::Url, &env.url_variables),
        ];
        for (kind, names) in kinds {
            for name in names {
                let known = variables
                    .iter()
                    .position(|it| it.name == *name && it.kind == kind);
                let place = known.unwrap_or_else(|| {
                    variables.push(Variable {
                        name: name.clone(),
                        kind,
                        policies: Vec::new(),
                        endpoints: Vec::new(),
                    });
                    variables.len() - 1
                });
                if let Some(variable) = variables.get_mut(place) {
                    variable.policies.extend(policy.metadata.name.clone());
                    variable.endpoints.extend(endpoints(policy));
                }
            }
        }
    }
    variables
}

/// Whether `envFrom` may bring the variable: what is in that ConfigMap or Secret cannot be seen here.
fn from_source(container: &Value, variable: &str) -> bool {
    inner(container, "envFrom").any(|source| {
        let prefix = source.get("prefix").and_then(Value::as_str).unwrap_or_default();
        variable.starts_with(prefix)
    })
}

/// A policy that finds none of its variables captures nothing in this pod.
fn missing(
    policies: &[&DatabaseAccessPolicy],
    found: &BTreeSet<(String, Kind)>,
    refusals: &mut Vec<Refusal>,
) {
    for policy in policies.iter().filter(|policy| !aliases(policy)) {
        let Some(env) = &policy.spec.database.capture.env else {
            continue;
        };
        let leading = [(Kind::Host, &env.host_variables), (Kind::Url, &env.url_variables)];
        let there = leading
            .iter()
            .any(|(kind, names)| names.iter().any(|name| found.contains(&(name.clone(), *kind))));
        if !there {
            let names: Vec<&str> = leading
                .iter()
                .flat_map(|(_, names)| names.iter().map(String::as_str))
                .collect();
            refusals.push(Refusal::new(
                Reason::VariableMissing,
                format!(
                    "policy {} captures by the variables {}, and no container has one of them",
                    policy.metadata.name.as_deref().unwrap_or_default(),
                    if names.is_empty() {
                        "(none that holds a host)".to_owned()
                    } else {
                        names.join(", ")
                    }
                ),
                "set one of them in the container's env, or name the pod's own variables in the policy",
            ));
        }
    }
}

/// What is wrong with a variable.
#[derive(Debug, PartialEq, Eq)]
enum Problem {
    NotLiteral,
    FromSource,
    Unreadable,
    NamesOther(String),
}

impl Problem {
    fn refusal(self, container: &str, variable: &Variable) -> Refusal {
        let at = format!("variable {} of container {container}", variable.name);
        let policies = variable.policies.join(", ");
        match self {
            Self::NotLiteral => Refusal::new(
                Reason::VariableNotLiteral,
                format!("{at} takes its host from elsewhere, and policy {policies} captures by it"),
                "write host and port as a literal value (user and password may come from $(OTHER) variables)",
            ),
            Self::FromSource => Refusal::new(
                Reason::VariableNotLiteral,
                format!(
                    "{at} may come from envFrom, which cannot be seen here, and policy {policies} captures by it"
                ),
                "set it in the container's env as a literal value, which wins over envFrom",
            ),
            Self::Unreadable => Refusal::new(
                Reason::VariableUnreadable,
                match variable.kind {
                    Kind::Host => format!("{at} does not hold a host"),
                    Kind::Port => format!("{at} does not hold a port"),
                    Kind::Url => format!("{at} does not hold a URL or a libpq connection string with a host"),
                },
                format!("correct the value, or the variables that policy {policies} names"),
            ),
            Self::NamesOther(other) => {
                let governed: Vec<String> = variable.endpoints.iter().map(ToString::to_string).collect();
                Refusal::new(
                    Reason::VariableNamesOther,
                    format!(
                        "{at} leads to {other}, and policy {policies} governs {}",
                        governed.join(", ")
                    ),
                    "correct the value, or add the endpoint to the policy",
                )
            }
        }
    }
}

/// Where a variable may lead.
struct Target<'a> {
    plan: &'a Plan,
    before: &'a [Captured],
    variable: &'a Variable,
}

impl Target<'_> {
    /// The address for a host and, where the text says one, a port.
    fn address(&self, host: &str, port: Option<u16>) -> Result<String, Problem> {
        if host.contains('$') {
            return Err(Problem::NotLiteral);
        }
        let allowed = |endpoint: &Endpoint| port.is_none_or(|port| endpoint.port == port);
        // A value that an earlier pass wrote leads back to the host that it was.
        let earlier = self.before.iter().find(|it| {
            it.listen
                .rsplit_once(':')
                .is_some_and(|(address, _)| address == host)
                && port.is_none_or(|port| port == it.port)
        });
        let meant = earlier.map_or(host, |it| it.host.as_str());
        for endpoint in self
            .variable
            .endpoints
            .iter()
            .filter(|endpoint| allowed(endpoint))
        {
            let listener = self
                .plan
                .listener(meant, endpoint.port)
                .filter(|it| it.host == endpoint.host);
            if let Some((address, _)) = listener.and_then(|it| it.listen.rsplit_once(':')) {
                return Ok(address.to_owned());
            }
        }
        Err(Problem::NamesOther(match port {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }))
    }

    fn port(&self, text: &str) -> Result<(), Problem> {
        let port = port(text)?;
        if self
            .variable
            .endpoints
            .iter()
            .any(|endpoint| endpoint.port == port)
        {
            Ok(())
        } else {
            Err(Problem::NamesOther(format!("port {port}")))
        }
    }
}

fn port(text: &str) -> Result<u16, Problem> {
    if text.contains('$') {
        return Err(Problem::NotLiteral);
    }
    text.trim().parse().map_err(|_| Problem::Unreadable)
}

/// The new value of one variable; none where it may stay.
fn rewritten(entry: &Value, target: &Target<'_>) -> Result<Option<String>, Problem> {
    if entry.get("valueFrom").is_some_and(|from| !from.is_null()) {
        return Err(Problem::NotLiteral);
    }
    let text = entry.get("value").and_then(Value::as_str).unwrap_or_default();
    let new = match target.variable.kind {
        Kind::Host => hosts(text, target)?,
        Kind::Port => {
            for part in text.split(',') {
                target.port(part)?;
            }
            return Ok(None);
        }
        Kind::Url if text.contains("://") => url(text, target)?,
        Kind::Url => keywords(text, target)?,
    };
    Ok((new != text).then_some(new))
}

/// A host, or several with commas between, as libpq takes them.
fn hosts(text: &str, target: &Target<'_>) -> Result<String, Problem> {
    let addresses: Result<Vec<String>, Problem> = text
        .split(',')
        .map(|host| {
            let host = host.trim();
            if host.is_empty() || host.starts_with('/') {
                return Err(Problem::Unreadable);
            }
            target.address(host, None)
        })
        .collect();
    Ok(addresses?.join(","))
}

/// `scheme://user:password@host:port,host:port/name?option=value`. The scheme may be any, `jdbc:postgresql` too.
fn url(text: &str, target: &Target<'_>) -> Result<String, Problem> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(Problem::Unreadable);
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at_checked(end).ok_or(Problem::Unreadable)?;
    let (user, list) = authority
        .rsplit_once('@')
        .map_or((None, authority), |(user, list)| (Some(user), list));
    let (path, query) = tail
        .split_once('?')
        .map_or((tail, None), |(path, query)| (path, Some(query)));
    let mut ports: Vec<u16> = Vec::new();
    if let Some(value) = query.and_then(|query| option(query, "port")) {
        ports = value.split(',').map(port).collect::<Result<_, _>>()?;
    }
    let mut named = false;
    let mut parts = Vec::new();
    for (index, part) in list.split(',').filter(|_| !list.is_empty()).enumerate() {
        let (host, text) = host_and_port(part)?;
        if host.is_empty() {
            return Err(Problem::Unreadable);
        }
        let number = match (text, ports.as_slice()) {
            (Some(text), []) => port(text)?,
            // Drivers differ in which of the two wins.
            (Some(_), _) => return Err(Problem::Unreadable),
            (None, ports) => port_of(ports, index)?,
        };
        let address = target.address(host, Some(number))?;
        named = true;
        parts.push(match text {
            Some(text) => format!("{address}:{text}"),
            None => address,
        });
    }
    let query = match query {
        None => String::new(),
        Some(query) => {
            let mut options = Vec::new();
            for pair in query.split('&') {
                match pair.split_once('=') {
                    Some((key, _)) if key.contains('%') => return Err(Problem::Unreadable),
                    Some((key @ ("host" | "hostaddr"), value)) => {
                        named = true;
                        options.push(format!("{key}={}", hosts_with_ports(value, &ports, target)?));
                    }
                    _ => options.push(pair.to_owned()),
                }
            }
            format!("?{}", options.join("&"))
        }
    };
    if !named {
        return Err(Problem::Unreadable);
    }
    let user = user.map(|user| format!("{user}@")).unwrap_or_default();
    Ok(format!("{scheme}://{user}{}{path}{query}", parts.join(",")))
}

/// The last value of an option in a URL's query.
fn option<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(name, _)| *name == key)
        .map(|(_, value)| value)
        .next_back()
}

/// `host`, `host:port`, `[address]:port`.
fn host_and_port(text: &str) -> Result<(&str, Option<&str>), Problem> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or(Problem::Unreadable)?;
        return match rest.strip_prefix(':') {
            None if rest.is_empty() => Ok((host, None)),
            port => Ok((host, Some(port.ok_or(Problem::Unreadable)?))),
        };
    }
    match text.split_once(':') {
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((text, None)),
    }
}

/// Hosts with commas between, each with the port at its place.
fn hosts_with_ports(text: &str, ports: &[u16], target: &Target<'_>) -> Result<String, Problem> {
    let mut addresses = Vec::new();
    for (index, host) in text.split(',').enumerate() {
        if host.is_empty() || host.starts_with('/') || host.contains('%') {
            return Err(Problem::Unreadable);
        }
        addresses.push(target.address(host, Some(port_of(ports, index)?))?);
    }
    Ok(addresses.join(","))
}

/// The port of one of several hosts: one for all, or one for each.
fn port_of(ports: &[u16], index: usize) -> Result<u16, Problem> {
    match ports {
        [] => Ok(DEFAULT_PORT),
        [only] => Ok(*only),
        several => several.get(index).copied().ok_or(Problem::Unreadable),
    }
}

/// `host=… port=… password='…'`, as libpq reads it.
fn keywords(text: &str, target: &Target<'_>) -> Result<String, Problem> {
    let mut pairs: Vec<(&str, Range<usize>, String)> = Vec::new();
    let mut letters = text.char_indices().peekable();
    while let Some(&(start, letter)) = letters.peek() {
        if letter.is_whitespace() {
            letters.next();
            continue;
        }
        while letters
            .peek()
            .is_some_and(|(_, letter)| *letter != '=' && !letter.is_whitespace())
        {
            letters.next();
        }
        let key_end = letters.peek().map_or(text.len(), |(at, _)| *at);
        while letters.next_if(|(_, letter)| letter.is_whitespace()).is_some() {}
        if letters.next_if(|(_, letter)| *letter == '=').is_none() {
            return Err(Problem::Unreadable);
        }
        while letters.next_if(|(_, letter)| letter.is_whitespace()).is_some() {}
        let value_start = letters.peek().map_or(text.len(), |(at, _)| *at);
        let quoted = letters.next_if(|(_, letter)| *letter == '\'').is_some();
        let mut value = String::new();
        let mut closed = !quoted;
        while let Some(&(_, letter)) = letters.peek() {
            if !quoted && letter.is_whitespace() {
                break;
            }
            letters.next();
            match letter {
                '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
                '\'' if quoted => {
                    closed = true;
                    break;
                }
                letter => value.push(letter),
            }
        }
        if !closed {
            return Err(Problem::Unreadable);
        }
        let value_end = letters.peek().map_or(text.len(), |(at, _)| *at);
        let key = text.get(start..key_end).ok_or(Problem::Unreadable)?;
        pairs.push((key, value_start..value_end, value));
    }
    let mut ports = Vec::new();
    if let Some((_, _, value)) = pairs.iter().rfind(|(key, _, _)| *key == "port") {
        ports = value.split(',').map(port).collect::<Result<_, _>>()?;
    }
    let mut new = text.to_owned();
    let mut named = false;
    // From the back, so that the ranges before stay true.
    for (key, range, value) in pairs.into_iter().rev() {
        if key == "host" || key == "hostaddr" {
            named = true;
            new.replace_range(range, &hosts_with_ports(&value, &ports, target)?);
        }
    }
    if named { Ok(new) } else { Err(Problem::Unreadable) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn rewritten_to(kind: Kind, text: &str) -> Result<Option<String>, Problem> {
        let endpoint = |host: &str, port: u16| Endpoint {
            host: host.to_owned(),
            port,
        };
        let captured = |host: &str, port: u16, address: &str| Captured {
            host: host.to_owned(),
            port,
            listen: format!("{address}:{port}"),
            names: Vec::new(),
            secrets: Vec::new(),
        };
        let spelling = |host: &str| (host.to_owned(), host.to_owned());
        let mut spellings =
            BTreeMap::from([spelling("10.0.0.5"), spelling("db.shop.svc"), spelling("fd00::5")]);
        spellings.insert("db".to_owned(), "db.shop.svc".to_owned());
        let plan = Plan {
            captured: vec![
                captured("10.0.0.5", 5432, "127.0.0.2"),
                captured("10.0.0.5", 6432, "127.0.0.2"),
                captured("db.shop.svc", 5432, "127.0.0.3"),
                captured("fd00::5", 5432, "127.0.0.4"),
            ],
            spellings,
            secrets: Vec::new(),
            needs_ca: false,
        };
        let variable = Variable {
            name: "X".to_owned(),
            kind,
            policies: vec!["orders".to_owned()],
            endpoints: vec![
                endpoint("10.0.0.5", 5432),
                endpoint("10.0.0.5", 6432),
                endpoint("db.shop.svc", 5432),
                endpoint("fd00::5", 5432),
            ],
        };
        let target = Target {
            plan: &plan,
            before: &[captured("db.shop.svc", 5432, "127.0.0.9")],
            variable: &variable,
        };
        rewritten(&serde_json::json!({"name": "X", "value": text}), &target)
    }

    #[test]
    fn only_the_host_of_a_value_changes() {
        let good = [
            (Kind::Host, "10.0.0.5", "127.0.0.2"),
            (Kind::Host, "db", "127.0.0.3"),
            (Kind::Host, "DB.shop.svc.", "127.0.0.3"),
            (Kind::Host, "10.0.0.5,db", "127.0.0.2,127.0.0.3"),
            (Kind::Host, "127.0.0.9", "127.0.0.3"),
            (
                Kind::Url,
                "postgres://10.0.0.5/orders",
                "postgres://127.0.0.2/orders",
            ),
            (
                Kind::Url,
                "postgresql+asyncpg://app:p@10.0.0.5:w@10.0.0.5:6432/orders?sslmode=disable#x",
                "postgresql+asyncpg://app:p@10.0.0.5:w@127.0.0.2:6432/orders?sslmode=disable#x",
            ),
            (
                Kind::Url,
                "postgres://$(USER):$(PASSWORD)@db:5432/orders",
                "postgres://$(USER):$(PASSWORD)@127.0.0.3:5432/orders",
            ),
            (
                Kind::Url,
                "jdbc:postgresql://10.0.0.5,db:5432/orders?user=10.0.0.5",
                "jdbc:postgresql://127.0.0.2,127.0.0.3:5432/orders?user=10.0.0.5",
            ),
            (
                Kind::Url,
                "postgres://u@[fd00::5]:5432/x",
                "postgres://u@127.0.0.4:5432/x",
            ),
            (
                Kind::Url,
                "postgres:///x?host=10.0.0.5&port=6432",
                "postgres:///x?host=127.0.0.2&port=6432",
            ),
            (
                Kind::Url,
                "postgres://10.0.0.5/x?port=6432",
                "postgres://127.0.0.2/x?port=6432",
            ),
            (
                Kind::Url,
                r"password='a host=10.0.0.5 \' b' host = 10.0.0.5 port=6432",
                r"password='a host=10.0.0.5 \' b' host = 127.0.0.2 port=6432",
            ),
            (Kind::Url, "host='db' dbname=x", "host=127.0.0.3 dbname=x"),
            (
                Kind::Url,
                "host=10.0.0.5,db port=6432,5432",
                "host=127.0.0.2,127.0.0.3 port=6432,5432",
            ),
            (Kind::Url, "hostaddr=10.0.0.5", "hostaddr=127.0.0.2"),
        ];
        for (kind, before, after) in good {
            assert_eq!(rewritten_to(kind, before), Ok(Some(after.to_owned())), "{before}");
        }
        assert_eq!(rewritten_to(Kind::Port, "5432"), Ok(None));
    }

    #[test]
    fn what_leads_elsewhere_or_cannot_be_seen_is_refused() {
        let other = |text: &str| Problem::NamesOther(text.to_owned());
        let wrong = [
            (Kind::Host, "10.0.0.6", other("10.0.0.6")),
            (Kind::Host, "$(HOST)", Problem::NotLiteral),
            (Kind::Host, "", Problem::Unreadable),
            (Kind::Host, "/var/run/postgresql", Problem::Unreadable),
            (Kind::Port, "6433", other("port 6433")),
            (Kind::Port, "$(PORT)", Problem::NotLiteral),
            (Kind::Port, "x", Problem::Unreadable),
            (Kind::Url, "postgres://10.0.0.5:6433/x", other("10.0.0.5:6433")),
            (Kind::Url, "postgres://db:6432/x", other("db:6432")),
            (Kind::Url, "postgres://$(HOST):5432/x", Problem::NotLiteral),
            (Kind::Url, "postgres://db:$(PORT)/x", Problem::NotLiteral),
            (
                Kind::Url,
                "postgres://10.0.0.5,10.0.0.6/x",
                other("10.0.0.6:5432"),
            ),
            (
                Kind::Url,
                "postgres://10.0.0.5/x?host=10.0.0.6",
                other("10.0.0.6:5432"),
            ),
            (Kind::Url, "postgres:///x", Problem::Unreadable),
            (
                Kind::Url,
                "postgres://10.0.0.5:5432/x?port=6433",
                Problem::Unreadable,
            ),
            (
                Kind::Url,
                "postgres://10.0.0.5/x?h%6Fst=10.0.0.6",
                Problem::Unreadable,
            ),
            (Kind::Url, "postgres://%2Fvar%2Frun/x", other("%2Fvar%2Frun:5432")),
            (Kind::Url, "dbname=x", Problem::Unreadable),
            (Kind::Url, "host='10.0.0.5", Problem::Unreadable),
            (Kind::Url, "host", Problem::Unreadable),
            (Kind::Url, "Host=10.0.0.5;Port=5432", Problem::Unreadable),
            (Kind::Url, "$(DATABASE_URL)", Problem::Unreadable),
            (Kind::Url, "host=10.0.0.5 host=10.0.0.6", other("10.0.0.6:5432")),
        ];
        for (kind, text, problem) in wrong {
            assert_eq!(rewritten_to(kind, text), Err(problem), "{text}");
        }
    }
}
