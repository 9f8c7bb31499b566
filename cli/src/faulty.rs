//! The CPU backend with a fault of choice, for tests of what must find it.

use std::cell::Cell;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kquant_moe::Result;
use kquant_moe::model::Tensor;
use kquant_moe::model::backend::{
    Attention, Backend, Batch, CacheShape, Down, Draw, InputShape, NormQkv, NormRouter, RoutingShape, Rows,
    SamplerShape, Swiglu,
};
use kquant_moe::model::cpu::{Cache, Cpu, Fixed, Input, Routing, Sampler};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The residual stream is off by one bit after the experts of every layer, in the first value of each token.
    Hidden,
    /// The same, of batches only.
    Grouped,
    /// The same, of single tokens only.
    Single,
    /// The same, in the forward of this number (from 1 on) only.
    Run(usize),
    /// The first logit is off by one bit where the output's norm is not recorded.
    Untraced,
    /// The same, of single tokens only.
    UntracedSingle,
    /// The first value of each token is not a number after the experts.
    Nan,
    /// The first token's two best experts are read in the other order.
    Indices,
    /// The first token's weights are read a little too large.
    Weights,
    /// The two largest logits of the first row change places.
    Top,
    /// The residual stream of batches with tokens of several sequences is off by one bit.
    Together,
    /// Pages are not copied.
    Copies,
    /// Of several tokens that are chosen from logits at the same time, all but the first are other ones.
    Choices,
}

/// The backend.
pub struct Faulty {
    name: &'static str,
    fault: Fault,
    /// Forwards so far, of all contexts.
    forwards: Arc<AtomicUsize>,
    /// Whether the last norm was recorded.
    recorded: Cell<bool>,
    /// Whether the batch has tokens of several sequences.
    mixed: Cell<bool>,
}

impl Faulty {
    /// A backend that says that it has this name.
    pub fn new(name: &'static str, fault: Fault) -> Self {
        Self { name, fault, forwards: Arc::default(), recorded: Cell::new(false), mixed: Cell::new(false) }
    }

    fn spoil_hidden(&self, hidden: &mut [f32], cols: usize, tokens: usize) {
        let fault = match self.fault {
            Fault::Hidden | Fault::Nan => true,
            Fault::Grouped => tokens > 1,
            Fault::Single => tokens == 1,
            Fault::Together => self.mixed.get(),
            Fault::Run(number) => self.forwards.load(Ordering::Relaxed) == number,
            _ => false,
        };
        for value in hidden.iter_mut().step_by(cols).take(if fault { tokens } else { 0 }) {
            *value = if self.fault == Fault::Nan { f32::NAN } else { value.next_up() };
        }
    }

    fn spoil_logits(&self, logits: &mut [f32], vocab: usize, rows: usize) {
        let fault = match self.fault {
            Fault::Untraced => !self.recorded.get(),
            Fault::UntracedSingle => !self.recorded.get() && rows == 1,
            _ => false,
        };
        if fault {
            logits[0] = logits[0].next_up();
        }
        if self.fault == Fault::Top {
            let mut order: Vec<usize> = (0..vocab).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            logits.swap(order[0], order[1]);
        }
    }
}

/// Methods of the CPU backend as they are.
macro_rules! forward {
    ($(fn $method:ident(&$self:ident $(, $argument:ident: $type:ty)* $(,)?) -> $result:ty;)*) => {$(
        fn $method(&$self $(, $argument: $type)*) -> $result {
            Cpu.$method($($argument),*)
        }
    )*};
}

impl Backend for Faulty {
    type Matrix = Tensor;
    type Table = Tensor;
    type Floats = Vec<f32>;
    type Fixed = Fixed;
    type Routing = Routing;
    type Cache = Cache;
    type Input = Input;
    type Sampler = Sampler;
    type Graph = Infallible;

    fn name(&self) -> &'static str {
        self.name
    }

    fn fork(&self) -> Result<Self> {
        Ok(Self { forwards: self.forwards.clone(), ..Self::new(self.name, self.fault) })
    }

    forward! {
        fn free_memory(&self) -> Result<Option<u64>>;
        fn staging_bytes(&self, tensor: &Tensor) -> u64;
        fn workspace_bytes(&self, shape: CacheShape) -> Result<u64>;
        fn matrix(&self, tensor: &Tensor) -> Result<Tensor>;
        fn table(&self, tensor: &Tensor) -> Result<Tensor>;
        fn floats_from(&self, values: &[f32]) -> Result<Vec<f32>>;
        fn floats(&self, len: usize) -> Result<Vec<f32>>;
        fn fixed(&self, blocks: usize) -> Result<Fixed>;
        fn routing(&self, shape: RoutingShape) -> Result<Routing>;
        fn cache(&self, shape: CacheShape) -> Result<Cache>;
        fn input(&self, shape: InputShape) -> Result<Input>;
        fn set_pages(&self, input: &mut Input, sequence: usize, first: usize, pages: &[u32]) -> Result<()>;
        fn read_page(&self, cache: &Cache, page: usize) -> Result<Vec<u8>>;
        fn write_page(&self, cache: &mut Cache, page: usize, bytes: &[u8]) -> Result<()>;
        fn read(&self, buffer: &Vec<f32>, from: usize, out: &mut [f32]) -> Result<()>;
        fn read_router_logits(&self, routing: &Routing, tokens: usize) -> Result<Vec<f32>>;
        fn synchronize(&self) -> Result<()>;
        fn copy_rows(&self, x: &Vec<f32>, rows: &[u32], cols: usize, out: &mut Vec<f32>) -> Result<()>;
        fn feed_back(&self, logits: &Vec<f32>, rows: usize, vocab: usize, input: &mut Input) -> Result<()>;
        fn read_choices(&self, input: &Input, row: usize, from: usize, count: usize) -> Result<Vec<u32>>;
        fn sampler(&self, shape: SamplerShape) -> Result<Sampler>;
        fn set_draws(&self, sampler: &mut Sampler, draws: &[Draw<'_>]) -> Result<()>;
        fn feed_back_drawn(
            &self,
            logits: &Vec<f32>,
            rows: usize,
            input: &mut Input,
            sampler: &mut Sampler,
        ) -> Result<()>;
        fn read_drawn(&self, sampler: &Sampler, row: usize, from: usize, count: usize) -> Result<Vec<u32>>;
        fn record(&self, enqueue: impl FnOnce() -> Result<()>) -> Result<Option<Infallible>>;
        fn argmax(&self, x: &Vec<f32>, rows: usize, cols: usize) -> Result<Vec<u32>>;
    }

    fn set_batch(&self, input: &mut Input, batch: &Batch<'_>) -> Result<()> {
        self.mixed.set(batch.sequences.windows(2).any(|pair| pair[0] != pair[1]));
        Cpu.set_batch(input, batch)
    }

    fn copy_page(&self, cache: &mut Cache, from: usize, to: usize) -> Result<()> {
        if self.fault == Fault::Copies { Ok(()) } else { Cpu.copy_page(cache, from, to) }
    }

    fn sample(&self, logits: &Vec<f32>, rows: usize, sampler: &mut Sampler) -> Result<Vec<u32>> {
        let mut chosen = Cpu.sample(logits, rows, sampler)?;
        if self.fault == Fault::Choices {
            chosen.iter_mut().skip(1).for_each(|token| *token ^= 1);
        }
        Ok(chosen)
    }

    fn read_indices(&self, routing: &Routing, tokens: usize) -> Result<Vec<u32>> {
        let mut indices = Cpu.read_indices(routing, tokens)?;
        if self.fault == Fault::Indices {
            indices.swap(0, 1);
        }
        Ok(indices)
    }

    fn read_weights(&self, routing: &Routing, tokens: usize) -> Result<Vec<f32>> {
        let mut weights = Cpu.read_weights(routing, tokens)?;
        if self.fault == Fault::Weights {
            weights[0] += 2e-6;
        }
        Ok(weights)
    }

    fn embedding(&self, table: &Tensor, input: &Input, tokens: usize, out: &mut Vec<f32>) -> Result<()> {
        self.forwards.fetch_add(1, Ordering::Relaxed);
        Cpu.embedding(table, input, tokens, out)
    }

    fn rms_norm(
        &self,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        eps: f32,
        shape: [usize; 2],
        out: Option<&mut Vec<f32>>,
        fixed: Option<&mut Fixed>,
    ) -> Result<()> {
        self.recorded.set(out.is_some());
        Cpu.rms_norm(x, weight, eps, shape, out, fixed)
    }

    fn norm_qkv(&self, mut operands: NormQkv<'_, Self>, tokens: usize) -> Result<()> {
        Cpu.norm_qkv(operands.for_backend(), tokens)
    }

    fn attention(
        &self,
        mut operands: Attention<'_, Self>,
        input: &Input,
        tokens: usize,
        cache: &mut Cache,
        layer: usize,
    ) -> Result<()> {
        Cpu.attention(operands.for_backend(), input, tokens, cache, layer)
    }

    fn matvec_add(
        &self,
        w: &Tensor,
        x: Rows<'_, Self>,
        tokens: usize,
        hidden: &mut Vec<f32>,
        product: Option<&mut Vec<f32>>,
    ) -> Result<()> {
        Cpu.matvec_add(w, x.for_backend(), tokens, hidden, product)
    }

    fn takes_floats(&self, w: &Tensor) -> bool {
        Cpu.takes_floats(w)
    }

    fn matvec(&self, w: &Tensor, x: Rows<'_, Self>, tokens: usize, y: &mut Vec<f32>) -> Result<()> {
        Cpu.matvec(w, x.for_backend(), tokens, y)?;
        // The forward has no product of this kind but the logits.
        self.spoil_logits(y, w.rows(), tokens);
        Ok(())
    }

    fn norm_router(&self, mut operands: NormRouter<'_, Self>, tokens: usize, routing: &mut Routing) -> Result<()> {
        Cpu.norm_router(operands.for_backend(), tokens, routing)
    }

    fn moe_swiglu(&self, mut operands: Swiglu<'_, Self>, routing: &mut Routing, tokens: usize) -> Result<()> {
        Cpu.moe_swiglu(operands.for_backend(), routing, tokens)
    }

    fn moe_down(&self, mut operands: Down<'_, Self>, routing: &Routing, tokens: usize) -> Result<()> {
        Cpu.moe_down(operands.for_backend(), routing, tokens)?;
        self.spoil_hidden(operands.hidden, operands.down.rows(), tokens);
        Ok(())
    }

    unsafe fn replay(&self, graph: &mut Infallible) -> Result<()> {
        match *graph {}
    }
}
