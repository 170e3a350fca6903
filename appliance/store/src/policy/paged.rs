//! A table that grows a page at a time: no element ever moves once its page is full, and none of
//! its memory is copied as a whole, so that no insertion takes long.

/// Bytes of one page, at most.
const PAGE_BYTES: usize = 1 << 16;

/// Elements by number, from 0. Those that were never written are `T::default()`.
pub struct Paged<T> {
    /// All full but the last.
    pages: Vec<Vec<T>>,
}

impl<T> Default for Paged<T> {
    fn default() -> Self {
        Self { pages: Vec::new() }
    }
}

impl<T: Copy + Default> Paged<T> {
    /// Elements of one page: a power of two, for cheap division.
    const PAGE: usize = {
        let size = if size_of::<T>() == 0 { 1 } else { size_of::<T>() };
        1 << (PAGE_BYTES / size).ilog2()
    };

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.pages.last().map_or(0, |last| (self.pages.len() - 1) * Self::PAGE + last.len())
    }

    /// Grows until there is a number `index`.
    pub fn reach(&mut self, index: usize) {
        while self.len() <= index {
            if self.pages.last().is_none_or(|last| last.len() == Self::PAGE) {
                self.pages.push(Vec::new());
            }
            let before = (self.pages.len() - 1) * Self::PAGE;
            let last = self.pages.last_mut().expect("just seen to");
            last.resize((index + 1 - before).min(Self::PAGE), T::default());
        }
    }

    /// The element of a number that is there.
    #[inline]
    pub fn get(&self, index: u32) -> &T {
        let index = index as usize;
        &self.pages[index / Self::PAGE][index % Self::PAGE]
    }

    /// The same, to be changed.
    #[inline]
    pub fn get_mut(&mut self, index: u32) -> &mut T {
        let index = index as usize;
        &mut self.pages[index / Self::PAGE][index % Self::PAGE]
    }

    /// Bytes of memory that it takes.
    pub fn bytes(&self) -> usize {
        let pages = self.pages.iter().map(|page| page.capacity() * size_of::<T>());
        pages.sum::<usize>() + self.pages.capacity() * size_of::<Vec<T>>()
    }
}
