//! Every governed text here is run on a real server, because only it knows what a text means.

mod printing;
