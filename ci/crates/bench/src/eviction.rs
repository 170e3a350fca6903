//! stub
mod belady;
mod model;
use memkv_store::Policy;
use memkv_workload::trace::{Request, TraceReader};
pub fn quick(path: &std::path::Path) {
    let t: Vec<Request> = TraceReader::open(path).unwrap().map(|x| x.unwrap()).collect();
    let mut all = vec![("trace", t)];
    for g in memkv_workload::generators::Generator::ALL {
        all.push((g.name(), g.requests()))
    }
    for (name, r) in &all {
        let n = r.iter().flat_map(|r| &r.blocks).collect::<std::collections::HashSet<_>>().len();
        println!("{name} {} refs {n}", r.iter().map(|r| r.blocks.len()).sum::<usize>());
        for p in Policy::ALL {
            let t = std::time::Instant::now();
            print!("{:10}", p.build().name());
            for s in [0.05, 0.10, 0.25] {
                print!(" {:.4}", model::replay(p.build(), &r, (n as f64 * s) as usize).ratio());
            }
            println!(" {:?}", t.elapsed());
        }
        print!("belady    ");
        for s in [0.05, 0.10, 0.25] {
            print!(" {:.4}", belady::replay(&r, (n as f64 * s) as usize).ratio());
        }
        println!();
    }
}
