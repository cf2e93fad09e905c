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
// *rsa.PrivateKey. v is useless afterwards, and so is whatever shares memory with it. It touches
// neither maps, functions, channels nor strings, nor what v has a pointer or an interface to that
// is of a type of others, or implements one. What lies in an interface without a pointer is out of
// reach, but for what that points to: nobody has its address.
func Wipe(v any, others ...reflect.Type) { walk(v, others, wiper{}) }

// Move copies the contents of every slice of integers that v reaches to the memory that alloc
// returns, and makes the slice lie there. Then it has test look whether v still does what it is
// for. If so, it clears where the slices lay before; if not, it puts everything back, clears the
// copies and returns the error of test. Slices that begin and end together go on doing so. Arrays,
// and integers by themselves, stay where they are, and so does what is of a type of others, as in
// [Wipe].
//
// alloc gets the number of bytes of all slices together, and returns at least so many, aligned to
// 8, on the Go heap or not; they have to live as long as v. On an error of alloc nothing has been
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

// visitor is shown the memory of integers. slice points to a slice header whose elements have the
// given size; plain is memory that belongs to a value itself.
type visitor interface {
	slice(header unsafe.Pointer, size uintptr)
	plain(p unsafe.Pointer, size uintptr)
}

func walk(v any, others []reflect.Type, visit visitor) {
	w := walker{visit: visit, others: others}
	value := reflect.ValueOf(v)
	if value.Kind() == reflect.Pointer {
		w.pointer(value)
		return
	}
	w.inside(value) // of a copy: only what it points to can be reached
}

type seen struct {
	p unsafe.Pointer
	t reflect.Type
	n int // elements of a slice
}

type walker struct {
	visit  visitor
	others []reflect.Type
	// pointers and slices that were followed, some dozens at most: a graph may have cycles
	seen []seen
}

func (w *walker) isOther(t reflect.Type) bool {
	for _, o := range w.others {
		if t == o || o.Kind() == reflect.Interface && t.Implements(o) {
			return true
		}
	}
	return false
}

// inside looks for pointers in a value that is not addressable.
func (w *walker) inside(v reflect.Value) {
	if !v.IsValid() || v.Kind() != reflect.Pointer && w.isOther(v.Type()) {
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		w.pointer(v)
	case reflect.Interface:
		if !v.IsNil() {
			w.inside(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			w.inside(v.Field(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			w.inside(v.Index(i))
		}
	case reflect.Slice:
		w.elements(v)
	}
}

// elements visits those of a slice, which are addressable, once.
func (w *walker) elements(v reflect.Value) {
	key := seen{v.UnsafePointer(), v.Type(), v.Len()}
	if v.Len() == 0 || slices.Contains(w.seen, key) {
		return
	}
	w.seen = append(w.seen, key)
	for i := range v.Len() {
		w.at(v.Index(i))
	}
}

func (w *walker) pointer(v reflect.Value) {
	key := seen{p: v.UnsafePointer(), t: v.Type()}
	if v.IsNil() || w.isOther(key.t) || slices.Contains(w.seen, key) {
		return
	}
	w.seen = append(w.seen, key)
	w.at(v.Elem())
}

// at visits a value that lies in memory, which may be a field that is not exported.
func (w *walker) at(v reflect.Value) {
	t := v.Type()
	p := unsafe.Pointer(v.UnsafeAddr())
	switch {
	case isPlain(t):
		w.visit.plain(p, t.Size())
		return
	case t.Kind() == reflect.Slice && isPlain(t.Elem()):
		w.visit.slice(p, t.Elem().Size())
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		w.pointer(v)
	case reflect.Interface:
		if !v.IsNil() {
			w.inside(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			w.at(v.Field(i))
		}
	case reflect.Slice:
		w.elements(v)
	case reflect.Array:
		for i := range v.Len() {
			w.at(v.Index(i))
		}
	}
}

// isPlain says whether a type is made of integers alone, so that zero bytes are a value of it.
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

type wiper struct{}

func (wiper) plain(p unsafe.Pointer, size uintptr) { clear(unsafe.Slice((*byte)(p), size)) }

func (wiper) slice(header unsafe.Pointer, size uintptr) {
	b := (*[]byte)(header) // of the same shape, whatever the elements
	if cap(*b) > 0 {
		clear(unsafe.Slice(unsafe.SliceData(*b), uintptr(cap(*b))*size))
	}
}

// mover first collects, then moves.
type mover struct {
	size  int
	found []found
	seen  map[span]int // offsets
}

type span struct {
	start unsafe.Pointer
	bytes int
}

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
