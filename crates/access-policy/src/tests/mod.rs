mod attempts;
mod binding;
mod decisions;
mod examples;
mod manifests;
mod psql;
mod rechecks;
mod world;
