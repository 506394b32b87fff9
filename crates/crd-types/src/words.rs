//! The sentences of the rules in the definitions. Whoever checks the same without an API server says them as well.

/// `spec.database.engine` changed.
pub const ENGINE_FIXED: &str = "the engine cannot change; make another policy";
/// A host with a scheme or a path.
pub const HOST_NO_URL: &str = "must be a host name or address, not a URL; write the host alone";
/// A host with a port.
pub const HOST_NO_PORT: &str = "must not hold a port; write it beside the host, as port";
/// An endpoint that is there twice.
pub const NAMED_TWICE: &str = "is named twice; name each host and port once";
/// An address, or the pod itself, cannot be captured by an alias.
pub const ADDRESS_NEEDS_ENV: &str = "is an address or the pod itself, which no alias leads away from; name the host, or set capture: {mode: Env, env: …}";
/// A password over a connection that does not suffice.
pub const TRANSPORT: &str = "would send the password over a connection that is not verified; set tls.mode: VerifyFull, or say credentials.transport: AnyTLS or Plaintext";
/// SCRAM passed through two TLS legs looks like a downgrade to the server.
pub const SERVE_NEEDS_CREDENTIALS: &str = "mode Serve cannot pass the application's own login through TLS on both sides; add credentials, or set tls.mode: Disable, or clientTLS.mode: Plain";
/// A certificate that is not shown.
pub const CERTIFICATE_NEEDS_SERVE: &str =
    "has no use without TLS towards the application; set mode: Serve, or leave it out";
/// Variables that are not rewritten.
pub const ENV_NEEDS_MODE: &str = "has no use in mode Alias; set mode: Env, or leave it out";
/// An authority that is not asked.
pub const CA_NEEDS_VERIFY: &str = "has no use where the certificate is not checked; set mode: VerifyFull";
/// Too many members of a subject, or none.
pub const ONE_SUBJECT: &str =
    "names exactly one of serviceAccount, user, group, agent; write one subject for each";
/// Columns beside actions on whole rows.
pub const COLUMNS_NARROW: &str =
    "narrows Select, Insert and Update; leave columns out, or put the other actions into a rule of their own";
/// `value`, but not Constant.
pub const VALUE_OF_CONSTANT: &str = "belongs to mask Constant; leave it out, or set type: Constant";
/// `keepFirst` or `keepLast`, but not Partial.
pub const KEEP_OF_PARTIAL: &str = "belongs to mask Partial; leave it out, or set type: Partial";
/// `unit`, but not DateTrunc.
pub const UNIT_OF_DATE_TRUNC: &str = "belongs to mask DateTrunc; leave it out, or set type: DateTrunc";
/// `keySecretRef`, but not Hash.
pub const KEY_OF_HASH: &str = "belongs to mask Hash; leave it out, or set type: Hash";
/// Two kinds of sink in one, or none.
pub const ONE_SINK: &str =
    "a sink has exactly one of openLineage, stdout; write one, and another LineageSink for the other";
/// The kind of a sink changed.
pub const SINK_KIND_FIXED: &str =
    "the kind of a sink cannot change, because its cursor would not fit; make another LineageSink";
/// A sink's URL with another scheme, or without a host.
pub const SINK_URL: &str = "must begin with https:// or http:// and name a host; write https://HOST/PATH";
/// A sink's URL that leads back into the collector's own pod or node.
pub const SINK_ADDRESS: &str = "leads to a loopback, link-local or unspecified address; name a host outside the collector's pod and node";
