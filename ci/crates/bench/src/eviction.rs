//! stub
mod belady; mod model;
use memkv_store::Policy;
use memkv_workload::trace::{Request,TraceReader};
pub fn quick(path:&std::path::Path){
    let r:Vec<Request>=TraceReader::open(path).unwrap().map(|x|x.unwrap()).collect();
    let n=r.iter().flat_map(|r|&r.blocks).collect::<std::collections::HashSet<_>>().len();
    for p in Policy::ALL{ let t=std::time::Instant::now();
        print!("{:10}",p.build().name()); for s in [0.05,0.10,0.25]{print!(" {:.4}",model::replay(p.build(),&r,(n as f64*s) as usize).ratio());} println!(" {:?}",t.elapsed());}
    print!("belady    "); for s in [0.05,0.10,0.25]{print!(" {:.4}",belady::replay(&r,(n as f64*s) as usize).ratio());} println!();
}
