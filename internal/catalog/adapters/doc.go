// Package adapters manages the LoRA adapters of a running server: it loads them, makes one the default of its model, and unloads them,
// while runs go on.
//
// A Folder is where adapter files come from and where they are kept. What is loaded is a copy under its SHA-256, so that it stays the
// same whatever becomes of the file it was made from; a small state file says what is loaded and what is the default, and is replaced
// atomically before anything changes in memory. So a restart finds what was there.
//
// A Manager changes the models of a catalog.Catalog. Each change is one of all or nothing: an adapter is checked against its model, loaded
// beside those that serve, has a few tokens decoded with it, and only then takes its name. Where there is a gate, an adapter that is
// to become a default is measured first, in the background; if its accuracy falls at any budget by more than a margin below that of the
// bare model, or cannot be measured, it is unloaded again and nothing has changed. What was found is kept until the name is used again.
//
// One mutex guards what is known; neither loading nor measuring holds it. At most one adapter is measured at a time.
package adapters
