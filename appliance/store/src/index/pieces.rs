//! An array that grows without moving what is in it.
//!
//! A `Vec` of millions doubles by copying all of them at once, which stalls the reactor for
//! milliseconds and holds the memory twice meanwhile. This one takes a piece of at most 64 KiB at a
//! time and keeps it where it is. It touches the memory of a piece as it needs it: a page that was
//! never used before takes a few microseconds, and all of a piece at once would take a hundred.
//! Pieces are small enough to come from the heap and not from a mapping of their own, whose last page
//! would be half empty.

/// Bytes of a piece, at most.
const PIECE_BYTES: usize = 64 * 1024;

/// Items in pieces, numbered from 0.
pub struct Pieces<T> {
    /// All but the last one full. None of them grows: it has room for its items from the beginning.
    pieces: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Pieces<T> {
    fn default() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }
}

impl<T: Default> Pieces<T> {
    /// Items of one piece: a power of two, so that a number is cut by shifting.
    const ITEMS: usize = (PIECE_BYTES / size_of::<T>() + 1).next_power_of_two() / 2;

    /// Adds an item, and answers its number.
    pub fn push(&mut self, item: T) -> usize {
        let number = self.len;
        if number / Self::ITEMS == self.pieces.len() {
            self.pieces.push(Vec::with_capacity(Self::ITEMS));
        }
        self.len += 1;
        self.pieces[number / Self::ITEMS].push(item);
        number
    }

    /// All items in their order. The memory of a piece is given back once it is done with.
    pub fn drain(self) -> impl Iterator<Item = T> {
        self.pieces.into_iter().flatten().take(self.len)
    }

    /// All items, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pieces.iter_mut().flatten().take(self.len)
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        self.pieces.len() * Self::ITEMS * size_of::<T>()
            + self.pieces.capacity() * size_of::<Vec<T>>()
    }
}

impl<T: Default> std::ops::Index<usize> for Pieces<T> {
    type Output = T;

    fn index(&self, number: usize) -> &T {
        &self.pieces[number / Self::ITEMS][number % Self::ITEMS]
    }
}

impl<T: Default> std::ops::IndexMut<usize> for Pieces<T> {
    fn index_mut(&mut self, number: usize) -> &mut T {
        &mut self.pieces[number / Self::ITEMS][number % Self::ITEMS]
    }
}

/// An item that can name another one while it is not in use.
pub trait Idle: Default {
    /// The number it names; any number, when it is not in use.
    fn next(&self) -> u32;

    /// What is not in use and names another one.
    fn idle(next: u32) -> Self;
}

/// Items in pieces, numbered from 1, which come and go. Those that are not in use are a list
/// through themselves, so that they cost nothing and are given out again, the last one first.
pub struct Pool<T> {
    items: Pieces<T>,
    /// The first that is not in use, 0 for none.
    idle: u32,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { items: Pieces::default(), idle: 0 }
    }
}

impl<T: Idle> Pool<T> {
    /// Takes an item into the pool, and answers its number.
    pub fn insert(&mut self, item: T) -> u32 {
        if self.idle == 0 {
            let number = u32::try_from(self.items.push(item) + 1);
            return number.expect("fewer than 2^32 items");
        }
        let number = self.idle;
        self.idle = std::mem::replace(&mut self[number], item).next();
        number
    }

    /// Takes an item out of the pool.
    pub fn remove(&mut self, number: u32) -> T {
        let idle = T::idle(std::mem::replace(&mut self.idle, number));
        std::mem::replace(&mut self[number], idle)
    }

    /// All items in the order of their numbers; those that are not in use, too.
    pub fn drain(self) -> impl Iterator<Item = T> {
        self.items.drain()
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.items.iter_mut()
    }

    /// The highest number given out so far.
    pub fn last(&self) -> u32 {
        self.items.len() as u32
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        self.items.bytes()
    }
}

impl<T: Idle> std::ops::Index<u32> for Pool<T> {
    type Output = T;

    fn index(&self, number: u32) -> &T {
        &self.items[number as usize - 1]
    }
}

impl<T: Idle> std::ops::IndexMut<u32> for Pool<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        &mut self.items[number as usize - 1]
    }
}
