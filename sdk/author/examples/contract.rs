//! `cargo run --release -p homeostat-author --example contract` writes what is made from
//! `wit/`: `sdk/REFERENCE.md` and `sdk/js/homeostat/contract.d.ts`.

use std::path::Path;

use homeostat_author::contract;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let resolve = contract::read(&sdk.join("../wit"))?;
    let files = [
        ("REFERENCE.md", contract::reference(&resolve)),
        ("js/homeostat/contract.d.ts", contract::typescript(&resolve)),
    ];
    for (name, text) in files {
        std::fs::write(sdk.join(name), text)?;
        println!("sdk/{name}");
    }
    Ok(())
}
