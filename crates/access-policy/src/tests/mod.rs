mod decisions;
mod manifests;
mod world;
