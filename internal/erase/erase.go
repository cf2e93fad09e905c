// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package erase keeps what cryptography leaves behind small: it moves and wipes the numbers inside
// values of the standard library, which hands out no way to do so, and runs work so that its stack,
// its registers and its signal frames hold nothing afterwards. What it cannot reach is the garbage
// that the work leaves on the heap; [RuntimeSecret] builds have that erased, too.
package erase

import (
	"reflect"
	"slices"
	"unsafe"
)

// Wipe clears every integer that v reaches through pointers, structs, interfaces, arrays and
// slices, exported or not: the key schedule behind a cipher.AEAD, the numbers of an
// *rsa.PrivateKey. The caller must not use v afterwards, nor anything that shares memory with it.
//
// Wipe leaves these alone:
//
//   - maps, functions, channels and strings;
//   - values behind a pointer or an interface whose type is one of others or implements one;
//   - values that lie in an interface without a pointer, since nobody has their address; it does
//     clear the memory that they point to.
func Wipe(v any, others ...reflect.Type) { walk(v, others, wiper{}) }

// Move copies the contents of every slice of integers that v reaches to the memory that alloc
// returns, and makes the slices refer to that memory. Then it calls test, which checks that v still
// works. On success it clears the old memory. On failure it puts everything back, clears the copies
// and returns the error of test. Slices that share their beginning and end go on sharing. Arrays
// and single integers stay where they are, and so do values of a type in others, as in [Wipe].
//
// alloc gets the number of bytes of all slices together. It returns at least that many, aligned to
// 8, on the Go heap or elsewhere; they have to live as long as v. If alloc fails, nothing was
// moved.
func Move(v any, alloc func(size int) ([]byte, error), test func() error,
	others ...reflect.Type) error {
	m := mover{seen: make(map[span]int)}
	walk(v, others, &m)
	to, err := alloc(m.size)
	if err != nil {
		return err
	}
	to = to[:m.size]
	m.move(to)
	if err := test(); err != nil {
		m.undo()
		clear(to)
		return err
	}
	m.clearOld()
	return nil
}

// visitor is called for the memory of integers. slice gets a pointer to a slice header, whose
// elements have the given size. plain gets memory that belongs to a value itself.
type visitor interface {
	slice(header unsafe.Pointer, size uintptr)
	plain(p unsafe.Pointer, size uintptr)
}

// walk calls visit for all integers that v reaches.
func walk(v any, others []reflect.Type, visit visitor) {
	w := walker{visit: visit, others: others}
	w.value(reflect.ValueOf(v)) // a copy of v: only memory that v points to can be reached
}

// seen identifies a pointer or a slice.
type seen struct {
	p unsafe.Pointer
	t reflect.Type
	n int // elements of a slice
}

// walker is the state of one walk. Invariant: it follows no pointer and no slice twice.
type walker struct {
	visit  visitor
	others []reflect.Type
	// the pointers and slices that it followed, some dozens at most: a graph may have cycles
	seen []seen
}

// isOther reports whether t is one of the types to leave alone.
func (w *walker) isOther(t reflect.Type) bool {
	for _, o := range w.others {
		if t == o || o.Kind() == reflect.Interface && t.Implements(o) {
			return true
		}
	}
	return false
}

// value visits a value and everything that it leads to. A value that is not addressable, such as
// the one in an interface, can only lead to others. Fields may be unexported.
func (w *walker) value(v reflect.Value) {
	if !v.IsValid() {
		return
	}
	switch t := v.Type(); {
	case !v.CanAddr():
		if t.Kind() != reflect.Pointer && w.isOther(t) {
			return
		}
	case isPlain(t):
		w.visit.plain(unsafe.Pointer(v.UnsafeAddr()), t.Size())
		return
	case t.Kind() == reflect.Slice && isPlain(t.Elem()):
		w.visit.slice(unsafe.Pointer(v.UnsafeAddr()), t.Elem().Size())
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		w.pointer(v)
	case reflect.Interface:
		if !v.IsNil() {
			w.value(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			w.value(v.Field(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			w.value(v.Index(i))
		}
	case reflect.Slice:
		w.elements(v)
	}
}

// elements visits the elements of a slice, once.
func (w *walker) elements(v reflect.Value) {
	key := seen{v.UnsafePointer(), v.Type(), v.Len()}
	if v.Len() == 0 || slices.Contains(w.seen, key) {
		return
	}
	w.seen = append(w.seen, key)
	for i := range v.Len() {
		w.value(v.Index(i))
	}
}

// pointer follows a pointer, once.
func (w *walker) pointer(v reflect.Value) {
	key := seen{p: v.UnsafePointer(), t: v.Type()}
	if v.IsNil() || w.isOther(key.t) || slices.Contains(w.seen, key) {
		return
	}
	w.seen = append(w.seen, key)
	w.value(v.Elem())
}

// isPlain reports whether a type consists of integers alone, so that zero bytes are a value of it.
func isPlain(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Array:
		return isPlain(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if !isPlain(t.Field(i).Type) {
				return false
			}
		}
		return true
	default:
		return t.Kind() >= reflect.Bool && t.Kind() <= reflect.Uint64 // uintptr comes later
	}
}

// wiper clears the memory it is called for.
type wiper struct{}

func (wiper) plain(p unsafe.Pointer, size uintptr) { clear(unsafe.Slice((*byte)(p), size)) }

func (wiper) slice(header unsafe.Pointer, size uintptr) {
	b := (*[]byte)(header) // of the same shape, whatever the elements
	if cap(*b) > 0 {
		clear(unsafe.Slice(unsafe.SliceData(*b), uintptr(cap(*b))*size))
	}
}

// mover collects the slices during the walk, and moves them afterwards. Invariant: size is the
// number of bytes of all slices in found, each rounded up to 8.
type mover struct {
	size  int
	found []found
	seen  map[span]int // offset of each slice that was found
}

// span is the memory of a slice.
type span struct {
	start unsafe.Pointer
	bytes int
}

// found is a slice that the walk found.
type found struct {
	header unsafe.Pointer
	offset int
	bytes  int    // of all elements
	whole  int    // of the capacity
	old    []byte // the header as it was; lengths count elements
}

func (m *mover) plain(unsafe.Pointer, uintptr) {}

func (m *mover) slice(header unsafe.Pointer, size uintptr) {
	b := (*[]byte)(header)
	if len(*b) == 0 {
		return
	}
	f := found{header: header, bytes: len(*b) * int(size), whole: cap(*b) * int(size), old: *b}
	at := span{unsafe.Pointer(unsafe.SliceData(*b)), f.bytes}
	offset, shared := m.seen[at]
	if !shared {
		offset = m.size
		m.seen[at] = offset
		m.size += (f.bytes + 7) &^ 7
	}
	f.offset = offset
	m.found = append(m.found, f)
}

func (m *mover) move(to []byte) {
	for _, f := range m.found {
		copy(to[f.offset:][:f.bytes], unsafe.Slice(unsafe.SliceData(f.old), f.bytes))
		n := len(f.old) // elements: the header's own type says of how many bytes
		*(*[]byte)(f.header) = unsafe.Slice(&to[f.offset], n)[:n:n]
	}
}

func (m *mover) undo() {
	for _, f := range m.found {
		*(*[]byte)(f.header) = f.old
	}
}

func (m *mover) clearOld() {
	for _, f := range m.found {
		clear(unsafe.Slice(unsafe.SliceData(f.old), f.whole))
	}
}
