//! The example program holds: `cargo test` builds examples but does not run their `main`.

#[path = "../examples/route.rs"]
mod route;

#[test]
fn the_route_example_runs() {
    route::main().expect("the example must route its request");
}
