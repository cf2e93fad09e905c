// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// JSON objects of which this package knows some members, and keeps the others as they are. encoding/json alone
// matches names without regard to case and drops what it does not know; here names are exact.

// memberError says which member does not fit its Go type. It holds names and no values.
type memberError struct{ path string }

func (e *memberError) Error() string { return e.path + " does not fit its type" }

// appender is a type that writes itself as JSON. Through its MarshalJSON alone, encoding/json would read and copy all of a
// prompt once more at each level of nesting.
type appender interface {
	appendJSON(dst []byte) ([]byte, error)
}

// sizeHint is about the number of bytes of the request's JSON: mostly a little more.
func (r *ChatRequest) sizeHint() int {
	n := 0
	for _, m := range r.Messages {
		n += len(m.Content) + len(m.Refusal)
		for _, p := range m.Parts {
			n += len(p.Text) + 64
			if p.ImageURL != nil {
				n += len(p.ImageURL.URL)
			}
			if p.Audio != nil {
				n += len(p.Audio.Data)
			}
		}
	}
	return n + n/16 + 64*len(r.Messages) + 512 // a sixteenth for escapes
}

// appendObject appends the struct v as an object, and extra's members in the order of their names. A name that v knows
// already is an error.
func appendObject[V any](dst []byte, v any, extra map[string]V) ([]byte, error) {
	object := reflect.ValueOf(v)
	known := fieldsOf(object.Type())
	start := len(dst)
	separator := func() {
		if len(dst) > start {
			dst = append(dst, ',')
		} else {
			dst = append(dst, '{')
		}
	}
	var err error
	for _, f := range known {
		value := object.Field(f.index)
		if (f.omitEmpty && isEmpty(value)) || (f.omitZero && value.IsZero()) {
			continue
		}
		separator()
		dst = append(jsonspan.AppendString(dst, f.name), ':')
		if dst, err = appendValue(dst, value); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(extra)) {
		if slices.ContainsFunc(known, func(f objectField) bool { return f.name == name }) {
			return nil, fmt.Errorf("%w: Extra[%q] has a field of its own", ErrInvalidRequest, name)
		}
		separator()
		dst = append(jsonspan.AppendString(dst, name), ':')
		if dst, err = appendAny(dst, extra[name]); err != nil {
			return nil, fmt.Errorf("%w: Extra[%q] cannot be marshalled", ErrInvalidRequest, fault.Sanitise(name, 40)) // it may be anything
		}
	}
	if len(dst) == start {
		dst = append(dst, '{')
	}
	return append(dst, '}'), nil
}

// appendValue appends v as encoding/json does, without the escapes for HTML, which only cost tokens.
func appendValue(dst []byte, v reflect.Value) ([]byte, error) {
	if v.Kind() == reflect.Interface && !v.IsNil() {
		v = v.Elem()
	}
	if a, ok := v.Interface().(appender); ok && v.Kind() != reflect.Pointer { // which may be nil
		return a.appendJSON(dst)
	}
	switch {
	case v.Type() == reflect.TypeFor[string]():
		return jsonspan.AppendString(dst, v.String()), nil
	case v.Kind() == reflect.Slice && v.Type().Elem().Implements(reflect.TypeFor[appender]()) && !v.IsNil():
		return appendElements(dst, v)
	}
	return appendAny(dst, v.Interface())
}

func appendElements(dst []byte, list reflect.Value) ([]byte, error) {
	dst = append(dst, '[')
	var err error
	for i := range list.Len() {
		if i > 0 {
			dst = append(dst, ',')
		}
		if dst, err = appendValue(dst, list.Index(i)); err != nil {
			return nil, err
		}
	}
	return append(dst, ']'), nil
}

// appendAny leaves v to encoding/json.
func appendAny(dst []byte, v any) ([]byte, error) {
	w := appendWriter{dst}
	enc := json.NewEncoder(&w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		if invalid, ok := errors.AsType[*json.MarshalerError](err); ok && errors.Is(invalid, ErrInvalidRequest) {
			return nil, invalid.Unwrap()
		}
		return nil, fmt.Errorf("%w: cannot be marshalled", ErrInvalidRequest) // the cause could quote a value
	}
	return w.b[:len(w.b)-len("\n")], nil
}

type appendWriter struct{ b []byte }

func (w *appendWriter) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

func marshal(v any) ([]byte, error) { return appendAny(nil, v) }

// isEmpty is what encoding/json's omitempty leaves out.
func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map, reflect.String, reflect.Array:
		return v.Len() == 0
	case reflect.Struct:
		return false
	}
	return v.IsZero()
}

// decoder is a type that reads itself from JSON text that was checked before. What it keeps may be slices of that.
type decoder interface {
	decodeJSON(valid []byte) error
}

// unmarshal is for the UnmarshalJSON of a decoder.
func unmarshal(data []byte, v decoder) error {
	if jsonspan.Valid(data, maxDepth) != nil {
		return errNoObject
	}
	return v.decodeJSON(data)
}

var errNoObject = &memberError{path: "the object"}

// decodeObject sets the fields of the struct that v points to from the members that its json tags name, and returns
// the others, as slices of the text. That was checked before: it is not checked again at each level of nesting.
func decodeObject(valid []byte, v any) (map[string]json.RawMessage, error) {
	if jsonspan.KindOf(valid) != jsonspan.Object {
		return nil, errNoObject
	}
	target := reflect.ValueOf(v).Elem()
	known := fieldsOf(target.Type())
	values := make([][]byte, len(known))
	var extra map[string]json.RawMessage
	for m := range jsonspan.MembersOf(valid) {
		if i := slices.IndexFunc(known, func(f objectField) bool { return m.Is(f.name) }); i >= 0 {
			values[i] = m.Value // the last of a repeated name counts
			continue
		}
		if extra == nil {
			extra = make(map[string]json.RawMessage)
		}
		extra[jsonspan.Text(m.Name)] = m.Value
	}
	for i, value := range values {
		if value == nil {
			continue
		}
		if err := decodeField(value, target.Field(known[i].index)); err != nil {
			return nil, prefixPath(known[i].name, err)
		}
	}
	return extra, nil
}

func prefixPath(name string, err error) error {
	if inner, ok := errors.AsType[*memberError](err); ok {
		return &memberError{path: name + "." + inner.path}
	}
	return &memberError{path: name}
}

var errKind = errors.New("another kind of value")

// decodeField does what encoding/json does, but that it does not check the text again, that a json.RawMessage becomes a
// slice of it, and that integers are read by wholeNumber.
func decodeField(value []byte, field reflect.Value) error {
	if d, ok := field.Addr().Interface().(decoder); ok {
		return d.decodeJSON(value)
	}
	if field.Type() == reflect.TypeFor[json.RawMessage]() {
		field.SetBytes(value)
		return nil
	}
	kind := jsonspan.KindOf(value)
	switch field.Kind() {
	case reflect.Int64:
		if kind == jsonspan.Number {
			n, err := wholeNumber(value)
			field.SetInt(n)
			return err
		}
	case reflect.String:
		if kind == jsonspan.String {
			field.SetString(jsonspan.Text(value[1 : len(value)-1]))
			return nil
		}
	case reflect.Pointer:
		if _, ok := reflect.Zero(field.Type()).Interface().(decoder); ok && kind != jsonspan.Null {
			field.Set(reflect.New(field.Type().Elem()))
			return decodeField(value, field.Elem())
		}
	case reflect.Slice:
		if reflect.PointerTo(field.Type().Elem()).Implements(reflect.TypeFor[decoder]()) && kind != jsonspan.Null {
			return decodeElements(value, kind, field)
		}
	}
	return json.Unmarshal(value, field.Addr().Interface())
}

func decodeElements(value []byte, kind jsonspan.Kind, list reflect.Value) error {
	if kind != jsonspan.Array {
		return errKind
	}
	list.Set(reflect.MakeSlice(list.Type(), 0, 1))
	for element := range jsonspan.ElementsOf(value) {
		list.Set(reflect.Append(list, reflect.Zero(list.Type().Elem())))
		if err := decodeField(element, list.Index(list.Len()-1)); err != nil {
			return err
		}
	}
	return nil
}

// wholeNumber reads a JSON number, cutting off a fraction: some servers write a float where an integer is meant.
func wholeNumber(value []byte) (int64, error) {
	text := string(value)
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return n, nil
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.Abs(f) >= 1<<63 {
		return 0, errors.New("out of range")
	}
	return int64(f), nil
}

// objectField is a field with a json tag.
type objectField struct {
	name                string
	index               int
	omitEmpty, omitZero bool
}

// fieldsOf lists the fields of a struct that have a name in their json tags, in their order.
func fieldsOf(t reflect.Type) []objectField {
	fields := make([]objectField, 0, t.NumField())
	for i := range t.NumField() {
		name, option, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name != "" && name != "-" {
			fields = append(fields, objectField{name: name, index: i, omitEmpty: option == "omitempty", omitZero: option == "omitzero"})
		}
	}
	return fields
}
