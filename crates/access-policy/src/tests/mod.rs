mod attempts;
mod binding;
mod decisions;
mod examples;
mod manifests;
mod rechecks;
mod world;
