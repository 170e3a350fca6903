//! Memory that is used again: what one request needed serves the next one of its kind.
//!
//! A request needs memory for a while: a task's frame, a list of keys, the two ends of a command.
//! In a server that has been busy for a while each of these was needed before, so what is not
//! needed any more is put on a shelf of its thread, a shelf for each type, and taken from there:
//! nobody asks the allocator, whose time nobody knows. A shelf has a bound in bytes; what is beyond
//! it goes back to the allocator.
//!
//! * [`Row`]: a vector whose memory goes to the shelf when it is dropped.
//! * [`Shared`]: a counted reference, the same.
//! * [`take`] and [`keep`]: the shelf itself, for what is neither.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Bytes of one type that a thread keeps, at most.
const KEPT_BYTES: usize = 4 << 20;
/// What each of them counts for at least.
const LEAST_BYTES: usize = 64;

thread_local! {
    static SHELVES: RefCell<Shelves> = RefCell::default();
}

/// Shelves by type.
#[derive(Default)]
struct Shelves(HashMap<TypeId, Box<dyn Any>, BuildHasherDefault<Plain>>);

struct Shelf<T> {
    kept: Vec<(usize, T)>,
    bytes: usize,
}

/// Takes the hash for what it is: a type's id is one already.
#[derive(Default)]
struct Plain(u64);

impl Hasher for Plain {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.0 = self.0.rotate_left(8) ^ u64::from(byte));
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }
}

impl Shelves {
    fn of<T: 'static>(&mut self) -> &mut Shelf<T> {
        let shelf = self
            .0
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Box::new(Shelf::<T> { kept: Vec::new(), bytes: 0 }));
        shelf.downcast_mut().expect("a shelf is found by its type")
    }
}

/// One of this type that somebody has kept.
pub fn take<T: 'static>() -> Option<T> {
    let taken = SHELVES.try_with(|shelves| {
        let mut shelves = shelves.borrow_mut();
        let shelf = shelves.of::<T>();
        let (bytes, value) = shelf.kept.pop()?;
        shelf.bytes -= bytes;
        Some(value)
    });
    // A thread that is shutting down has no shelves.
    taken.ok().flatten()
}

/// Keeps a value for the next [`take`] of this thread: one that owns so many bytes, and nothing that
/// must not be there for long.
pub fn keep<T: 'static>(value: T, bytes: usize) {
    let bytes = bytes.max(LEAST_BYTES);
    let mut value = Some(value);
    let _ = SHELVES.try_with(|shelves| {
        let mut shelves = shelves.borrow_mut();
        let shelf = shelves.of::<T>();
        if shelf.bytes + bytes <= KEPT_BYTES {
            shelf.bytes += bytes;
            shelf.kept.extend(value.take().map(|value| (bytes, value)));
        }
    });
    // What found no place is dropped here, where it may do what it likes.
    drop(value);
}

/// An empty vector with the memory of an earlier one.
pub fn vec<T: 'static>() -> Vec<T> {
    take().unwrap_or_default()
}

/// Keeps the memory of a vector for [`vec`]; what is in it is dropped.
pub fn keep_vec<T: 'static>(mut items: Vec<T>) {
    items.clear();
    let bytes = items.capacity() * size_of::<T>();
    if bytes > 0 {
        keep(items, bytes);
    }
}

/// The memory of a vector as that of items which borrow from elsewhere; what is in it is dropped.
pub fn renamed<T, U>(mut items: Vec<T>) -> Vec<U> {
    items.clear();
    // Collecting from a vector of items of the same size happens in its own memory.
    items.into_iter().map(|_| unreachable!("it was cleared")).collect()
}

/// A vector whose memory is used again.
pub struct Row<T: 'static>(Vec<T>);

impl<T> Row<T> {
    /// An empty one.
    pub fn new() -> Row<T> {
        Row(vec())
    }

    /// The vector itself, which is not used again by itself.
    pub fn into_vec(mut self) -> Vec<T> {
        std::mem::take(&mut self.0)
    }
}

impl Row<u8> {
    /// So many zeros.
    pub fn zeros(length: usize) -> Row<u8> {
        let mut row = Row::new();
        row.resize(length, 0);
        row
    }
}

impl<T> Default for Row<T> {
    fn default() -> Row<T> {
        Row::new()
    }
}

impl<T> Drop for Row<T> {
    fn drop(&mut self) {
        keep_vec(std::mem::take(&mut self.0));
    }
}

impl<T> Deref for Row<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T> DerefMut for Row<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.0
    }
}

impl<T> From<Vec<T>> for Row<T> {
    fn from(items: Vec<T>) -> Row<T> {
        Row(items)
    }
}

impl<T, const N: usize> From<[T; N]> for Row<T> {
    fn from(items: [T; N]) -> Row<T> {
        items.into_iter().collect()
    }
}

impl<T> FromIterator<T> for Row<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Row<T> {
        let mut row = Row::new();
        row.extend(items);
        row
    }
}

impl<T> Extend<T> for Row<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, items: I) {
        self.0.extend(items);
    }
}

impl<T: Clone> Clone for Row<T> {
    fn clone(&self) -> Row<T> {
        self.iter().cloned().collect()
    }
}

impl<T: fmt::Debug> fmt::Debug for Row<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: PartialEq> PartialEq for Row<T> {
    fn eq(&self, other: &Row<T>) -> bool {
        self.0 == other.0
    }
}

impl<T: Eq> Eq for Row<T> {}

impl<'a, T> IntoIterator for &'a Row<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, T> IntoIterator for &'a mut Row<T> {
    type Item = &'a mut T;
    type IntoIter = std::slice::IterMut<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

impl<T> IntoIterator for Row<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(mut self) -> IntoIter<T> {
        self.reverse();
        IntoIter(self)
    }
}

/// The items of a [`Row`], by value.
pub struct IntoIter<T: 'static>(
    /// Those that are left, the next one last.
    Row<T>,
);

impl<T> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.pop()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.0.len(), Some(self.0.len()))
    }
}

impl<T> ExactSizeIterator for IntoIter<T> {}

/// What can be made ready for its next use.
pub trait Reuse: Default + 'static {
    /// Lets go of everything but memory: it is as if it were new.
    fn reset(&mut self);

    /// Bytes that it owns besides itself.
    fn bytes(&self) -> usize {
        0
    }
}

/// A counted reference, from any thread, to something whose memory is used again.
pub struct Shared<T: Reuse>(Option<Arc<T>>);

impl<T: Reuse> Shared<T> {
    /// A new one, as `fill` makes it of one that is as if it were new.
    pub fn new(fill: impl FnOnce(&mut T)) -> Shared<T> {
        let mut shared: Arc<T> = take().unwrap_or_default();
        fill(Arc::get_mut(&mut shared).expect("nobody else has what lies on a shelf"));
        Shared(Some(shared))
    }

    fn arc(&self) -> &Arc<T> {
        self.0.as_ref().expect("it is there until it is dropped")
    }

    /// Whether both are the same one.
    pub fn is(&self, other: &Shared<T>) -> bool {
        Arc::ptr_eq(self.arc(), other.arc())
    }
}

impl<T: Reuse> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        Shared(self.0.clone())
    }
}

impl<T: Reuse> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.arc()
    }
}

impl<T: Reuse> Drop for Shared<T> {
    /// Where two go at one moment on two threads, neither may be the last: then it is not kept.
    fn drop(&mut self) {
        let Some(mut shared) = self.0.take() else { return };
        let Some(value) = Arc::get_mut(&mut shared) else { return };
        value.reset();
        let bytes = size_of::<T>() + value.bytes();
        keep(shared, bytes);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_row_has_the_memory_of_the_row_before() {
        let first: Row<u64> = (0..100).collect();
        let (place, capacity) = (first.as_ptr(), first.capacity());
        drop(first);
        let mut second = Row::<u64>::new();
        assert!(second.is_empty());
        assert_eq!((second.as_ptr(), second.capacity()), (place, capacity));
        // One more at the same time has memory of its own.
        let third: Row<u64> = [1, 2, 3].into();
        second.extend([4, 5]);
        assert_eq!((&second[..], &third[..]), (&[4, 5][..], &[1, 2, 3][..]));
        assert_eq!(second.clone().into_iter().collect::<Vec<_>>(), [4, 5]);
        assert_eq!(third.into_iter().len(), 3);
    }

    #[test]
    fn what_is_in_a_row_is_dropped_with_it_and_may_have_rows_itself() {
        struct Counts(Rc<Cell<u32>>);
        impl Drop for Counts {
            fn drop(&mut self) {
                let inner: Row<u8> = [1].into();
                self.0.set(self.0.get() + u32::from(inner[0]));
            }
        }
        let count = Rc::new(Cell::new(0));
        let row: Row<Counts> = (0..5).map(|_| Counts(count.clone())).collect();
        let mut items = row.into_iter();
        drop(items.next());
        assert_eq!(count.get(), 1);
        drop(items);
        assert_eq!(count.get(), 5);
        assert_eq!(Row::<Counts>::new().len(), 0);
    }

    #[test]
    fn a_shelf_has_a_bound() {
        struct Big;
        for _ in 0..3 {
            keep(Big, KEPT_BYTES / 2);
        }
        assert!(take::<Big>().is_some() && take::<Big>().is_some());
        assert!(take::<Big>().is_none(), "the third found no place");
        keep(Big, KEPT_BYTES);
        assert!(take::<Big>().is_some(), "what was taken leaves its place");
    }

    #[test]
    fn memory_is_renamed_where_it_lies() {
        let bytes = [1u8, 2, 3];
        let mut borrowed: Vec<&[u8]> = vec::<&'static [u8]>();
        borrowed.extend([&bytes[..1], &bytes[1..]]);
        let place = borrowed.as_ptr() as usize;
        keep_vec(renamed::<_, &'static [u8]>(borrowed));
        let again = vec::<&'static [u8]>();
        assert_eq!(again.as_ptr() as usize, place);
    }

    #[derive(Default)]
    struct Text {
        bytes: String,
    }

    impl Reuse for Text {
        fn reset(&mut self) {
            self.bytes.clear();
        }

        fn bytes(&self) -> usize {
            self.bytes.capacity()
        }
    }

    #[test]
    fn the_last_of_several_references_keeps_the_memory() {
        let first = Shared::<Text>::new(|text| text.bytes.push_str("once upon a time"));
        let second = first.clone();
        let place = second.bytes.as_ptr();
        assert!(first.is(&second));
        drop(first);
        assert_eq!(second.bytes, "once upon a time");
        drop(second);
        let third = Shared::<Text>::new(|text| assert_eq!(text.bytes, "", "as if it were new"));
        assert_eq!(third.bytes.as_ptr(), place);
    }
}
