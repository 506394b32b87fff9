//! What is known of the server's side of the session: the settings that decide what a text means.
//!
//! Settings come back by themselves in many ways (ROLLBACK, the end of SET LOCAL, RESET, DISCARD ALL, `ALTER ROLE …
//! SET`), so the session does not keep a model of them: whatever may have changed them makes the knowledge stale, and
//! before the next text that needs it is judged, it is read back from the server. Only inside one simple Query, where
//! nothing can be read between two statements, it is foretold ([`Foretold`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;
use sql_facts::facts::SessionEffect;
use sql_facts::{Catalog, Overlay, SearchPath};

/// Reads one row of settings: (kind, JSON). Names are qualified, so it means the same under any search_path. To be
/// joined with the overlay's rows.
pub(crate) const SETTINGS_SQL: &str = "SELECT 'settings'::pg_catalog.text AS kind, pg_catalog.json_build_object(\
    'path', pg_catalog.current_schemas(true), \
    'search_path', pg_catalog.current_setting('search_path'), \
    'role', current_user, \
    'session_user', session_user, \
    'encoding', pg_catalog.current_setting('client_encoding'), \
    'standard_conforming_strings', pg_catalog.current_setting('standard_conforming_strings'), \
    'transform_null_equals', pg_catalog.current_setting('transform_null_equals'), \
    'bytea_output', pg_catalog.current_setting('bytea_output'), \
    'temp_schema', (SELECT n.nspname FROM pg_catalog.pg_namespace AS n WHERE n.oid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()))::pg_catalog.text AS data";

/// Rows updated and deleted in the open transaction, as the server's statistics count them (with what earlier
/// transactions of the session did and the server has not reported yet: only differences mean something).
pub(crate) const CHANGED_SQL: &str = "SELECT 'changed'::pg_catalog.text AS kind, \
    (COALESCE(pg_catalog.sum(s.n_tup_upd), 0) OPERATOR(pg_catalog.+) COALESCE(pg_catalog.sum(s.n_tup_del), 0))::pg_catalog.text AS data \
    FROM pg_catalog.pg_stat_xact_user_tables AS s";

/// The settings that decide what a text means, as the server says them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Settings {
    /// `current_schemas(true)`.
    pub path: Vec<String>,
    /// The setting as text.
    pub search_path: String,
    /// `current_user`.
    pub role: String,
    /// `session_user`.
    pub session_user: String,
    /// `client_encoding`.
    pub encoding: String,
    /// `on` or `off`.
    pub standard_conforming_strings: String,
    /// `on` or `off`.
    pub transform_null_equals: String,
    /// `hex` or `escape`.
    pub bytea_output: String,
    /// `pg_temp_N`, once the session has one.
    pub temp_schema: Option<String>,
}

/// Settings and overlay as last read.
#[derive(Debug, Clone)]
pub struct Known {
    /// Settings.
    pub settings: Settings,
    /// `settings.path`, shared.
    pub path: Arc<SearchPath>,
    /// The session's own relations.
    pub overlay: Arc<Overlay>,
    /// Unique in the process for each overlay that is not empty; 0 for an empty one.
    pub overlay_number: u64,
}

static NEXT_OVERLAY: AtomicU64 = AtomicU64::new(1);

/// What cannot be understood in the server's answer to our own question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the session's state: {0}")]
pub struct StateUnreadable(pub String);

impl Known {
    /// From the one row of [`crate::Session::start_sql`], asked on a connection that has just begun: it has changed
    /// nothing yet, so only its settings have to be read. `None`: it has a temporary schema already (the connection of
    /// a pooler), and everything has to be.
    ///
    /// # Errors
    /// A row that is not understood.
    pub fn at_start(rows: &[(String, String)]) -> Result<Option<Self>, StateUnreadable> {
        let [(kind, data)] = rows else {
            return Err(StateUnreadable("not one row of settings".to_owned()));
        };
        if kind != "settings" {
            return Err(StateUnreadable(format!("a row of {kind}")));
        }
        let settings: Settings =
            serde_json::from_str(data).map_err(|error| StateUnreadable(error.to_string()))?;
        if settings.temp_schema.is_some() {
            return Ok(None);
        }
        Ok(Some(Self {
            path: Arc::new(SearchPath(settings.path.clone())),
            settings,
            overlay: Arc::default(),
            overlay_number: 0,
        }))
    }

    /// From the rows (kind, JSON) of [`SETTINGS_SQL`] and the overlay's own statement.
    ///
    /// # Errors
    /// A row that is not understood.
    pub fn from_rows(catalog: &Catalog, rows: &[(String, String)]) -> Result<Self, StateUnreadable> {
        let mut settings: Option<Settings> = None;
        let mut relations = Vec::new();
        for (kind, data) in rows {
            if kind == "settings" {
                settings =
                    Some(serde_json::from_str(data).map_err(|error| StateUnreadable(error.to_string()))?);
            } else {
                relations.push((kind.as_str(), data.as_str()));
            }
        }
        let settings = settings.ok_or_else(|| StateUnreadable("no row of settings".to_owned()))?;
        let mut overlay =
            Overlay::from_rows(catalog, relations).map_err(|error| StateUnreadable(error.to_string()))?;
        if overlay.temp_schema.is_none() {
            overlay.temp_schema = settings.temp_schema.clone();
        }
        let overlay_number = if overlay.is_empty() {
            0
        } else {
            NEXT_OVERLAY.fetch_add(1, Ordering::Relaxed)
        };
        let path = Arc::new(SearchPath(settings.path.clone()));
        Ok(Self {
            settings,
            path,
            overlay: Arc::new(overlay),
            overlay_number,
        })
    }

    /// Whether a text can be read as the server will read it; the reason if not.
    ///
    /// # Errors
    /// A sentence for the client.
    pub fn can_read(&self, text: &str) -> Result<(), &'static str> {
        let encoding = self.settings.encoding.as_str();
        if !encoding.eq_ignore_ascii_case("UTF8") && !text.is_ascii() {
            return Err("client_encoding is not UTF8, and the text is not plain ASCII");
        }
        if self.settings.standard_conforming_strings != "on" && text.contains('\\') {
            return Err("standard_conforming_strings is off, and the text holds a backslash");
        }
        if self.settings.transform_null_equals != "off"
            && !text.to_ascii_lowercase().trim_start().starts_with("set ")
        {
            return Err("transform_null_equals is on, so that `= NULL` means something else");
        }
        Ok(())
    }
}

/// The search path that the next statements of one simple Query will meet, as far as it can be foretold.
#[derive(Debug, Clone)]
pub(crate) struct Foretold {
    /// `None`: cannot be foretold.
    pub path: Option<Arc<SearchPath>>,
    /// Own relations; `None`: cannot be foretold.
    pub overlay: Option<Arc<Overlay>>,
}

impl Foretold {
    /// Nothing changed yet.
    pub(crate) fn from_known(known: &Known) -> Self {
        Self {
            path: Some(Arc::clone(&known.path)),
            overlay: Some(Arc::clone(&known.overlay)),
        }
    }

    /// A statement with that effect is taken as successful.
    pub(crate) fn apply(&mut self, effect: &SessionEffect, known: &Known, catalog: &Catalog) {
        match effect {
            SessionEffect::Setting {
                name,
                values,
                local: _,
            } if name == "search_path" => {
                self.path = values
                    .as_ref()
                    .map(|values| Arc::new(effective_path(values, known, catalog)));
            }
            SessionEffect::Setting { name, .. } => {
                if decides_meaning(name) {
                    self.path = None;
                }
            }
            SessionEffect::ResetAll | SessionEffect::UnknownSetting => self.path = None,
            SessionEffect::CatalogChange => self.overlay = None,
        }
    }
}

/// Whether a setting decides what a text means, or who the session is to the server.
pub(crate) fn decides_meaning(name: &str) -> bool {
    matches!(
        name,
        "search_path"
            | "role"
            | "session_authorization"
            | "client_encoding"
            | "names"
            | "standard_conforming_strings"
            | "transform_null_equals"
            | "backslash_quote"
            | "bytea_output"
    )
}

/// `current_schemas(true)` for a search_path made of these names (`src/backend/catalog/namespace.c`,
/// `finalNamespacePath`): `"$user"` is the role, schemas that do not exist are left out, `pg_catalog` and the
/// temporary schema come first unless they are named.
fn effective_path(names: &[String], known: &Known, catalog: &Catalog) -> SearchPath {
    let temp = known.settings.temp_schema.as_deref();
    let mut path: Vec<String> = Vec::new();
    let mut names_temp = false;
    for name in names {
        let name = match name.as_str() {
            "$user" => known.settings.role.as_str(),
            "pg_temp" => {
                names_temp = true;
                match temp {
                    Some(temp) => temp,
                    None => continue,
                }
            }
            other => other,
        };
        let exists = catalog.names.contains_key(name) || Some(name) == temp;
        if exists && !path.iter().any(|other| other == name) {
            path.push(name.to_owned());
        }
    }
    if !path.iter().any(|name| name == "pg_catalog") {
        path.insert(0, "pg_catalog".to_owned());
    }
    if let Some(temp) = temp
        && !names_temp
        && !path.iter().any(|name| name == temp)
    {
        path.insert(0, temp.to_owned());
    }
    SearchPath(path)
}
