// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

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

// JSON objects of which this package knows some members, and keeps the others as they are.
// encoding/json alone matches names without regard to case and drops what it does not know; here
// names are exact.

// MemberError says which member does not fit its Go type. It holds names and no values.
type MemberError struct{ Path string }

func (e *MemberError) Error() string { return e.Path + " does not fit its type" }

// Codec writes and reads the values of types that do so themselves. Through their MarshalJSON and
// UnmarshalJSON, encoding/json would read and copy all of a prompt once more at each level of
// nesting.
type Codec struct {
	// Append appends v, which is no pointer, as JSON. known is false when v does not write itself.
	Append func(dst []byte, v any) (_ []byte, known bool, err error)
	// Decode reads what v points to from JSON that was checked before, of which it may keep slices.
	// known is false when v does not read itself.
	Decode func(valid []byte, v any) (known bool, err error)
}

// AppendObject appends the struct v as an object, and extra's members in the order of their names.
// A name that v knows already is an error. Values that are no JSON yet, and become null, are left
// out: nobody has to know which of its members a server refuses. A json.RawMessage stays as it
// came.
func AppendObject[V any](c Codec, dst []byte, v any, extra map[string]V) ([]byte, error) {
	object := reflect.ValueOf(v)
	known, _ := fieldsOf(object.Type())
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
		if dst, err = c.appendValue(dst, value); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(extra)) {
		if slices.ContainsFunc(known, func(f objectField) bool { return f.name == name }) {
			return nil, fmt.Errorf("%w: Extra[%q] has a field of its own", fault.ErrInvalidRequest,
				name)
		}
		before := len(dst)
		separator()
		dst = append(jsonspan.AppendString(dst, name), ':')
		at := len(dst)
		if dst, err = appendAny(dst, extra[name]); err != nil {
			// it may be anything
			return nil, fmt.Errorf("%w: Extra[%q] cannot be marshalled", fault.ErrInvalidRequest,
				fault.Sanitise(name, 40))
		}
		if _, fixed := any(extra).(map[string]json.RawMessage); !fixed &&
			string(dst[at:]) == "null" {
			dst = dst[:before]
		}
	}
	if len(dst) == start {
		dst = append(dst, '{')
	}
	return append(dst, '}'), nil
}

// appendValue appends v as encoding/json does, without the escapes for HTML, which only cost
// tokens.
func (c Codec) appendValue(dst []byte, v reflect.Value) ([]byte, error) {
	if v.Kind() == reflect.Interface && !v.IsNil() {
		v = v.Elem()
	}
	if v.Kind() == reflect.Struct {
		if out, known, err := c.Append(dst, v.Interface()); known {
			return out, err
		}
	}
	switch {
	case v.Type() == reflect.TypeFor[string]():
		return jsonspan.AppendString(dst, v.String()), nil
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct && !v.IsNil():
		return c.appendElements(dst, v)
	}
	return appendAny(dst, v.Interface())
}

func (c Codec) appendElements(dst []byte, list reflect.Value) ([]byte, error) {
	dst = append(dst, '[')
	var err error
	for i := range list.Len() {
		if i > 0 {
			dst = append(dst, ',')
		}
		if dst, err = c.appendValue(dst, list.Index(i)); err != nil {
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
		if invalid, ok := errors.AsType[*json.MarshalerError](err); ok && errors.Is(invalid,
			fault.ErrInvalidRequest) {
			return nil, invalid.Unwrap()
		}
		// the cause could quote a value
		return nil, fmt.Errorf("%w: cannot be marshalled", fault.ErrInvalidRequest)
	}
	out := w.b[:len(w.b)-len("\n")]
	// encoding/json lets through what a json.RawMessage or a MarshalJSON brings: bytes that are no
	// UTF-8, and depth.
	if jsonspan.Valid(out[len(dst):], MaxDepth-levels) != nil {
		return nil, fmt.Errorf("%w: cannot be marshalled", fault.ErrInvalidRequest)
	}
	return out, nil
}

// levels is more than those of objects and lists that any value has around it in a request.
const levels = 8

type appendWriter struct{ b []byte }

func (w *appendWriter) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

// Marshal is json.Marshal without the escapes for HTML, and with errors that quote no value.
func Marshal(v any) ([]byte, error) { return appendAny(nil, v) }

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

// ErrNoObject is the error of what is not an object.
var ErrNoObject = &MemberError{Path: "the object"}

// DecodeObject sets the fields of the struct that v points to from the members that its json tags
// name. The others go to its field Extra, if it has one, as slices of the text. A field with the
// tag read:"lax" is zero where the member has another type; one with read:"text" takes an object as
// its text. The text was checked before: it is not checked again at each level of nesting.
func (c Codec) DecodeObject(valid []byte, v any) error {
	return c.decodeObject(valid, reflect.ValueOf(v).Elem())
}

func (c Codec) decodeObject(valid []byte, target reflect.Value) error {
	if jsonspan.KindOf(valid) != jsonspan.Object {
		return ErrNoObject
	}
	known, extraAt := fieldsOf(target.Type())
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
		if err := c.decodeAs(known[i].read, value, target.Field(known[i].index)); err != nil {
			return PrefixPath(known[i].name, err)
		}
	}
	if extraAt >= 0 {
		target.Field(extraAt).Set(reflect.ValueOf(extra))
	}
	return nil
}

// decodeAs is DecodeField by the field's tag "read".
func (c Codec) decodeAs(read string, value []byte, field reflect.Value) error {
	if read == "text" && jsonspan.KindOf(value) == jsonspan.Object {
		field.SetString(string(value))
		return nil
	}
	err := c.DecodeField(value, field)
	if err != nil && read == "lax" {
		field.SetZero()
		return nil
	}
	return err
}

// PrefixPath puts a name before the path of an error.
func PrefixPath(name string, err error) error {
	if inner, ok := errors.AsType[*MemberError](err); ok {
		return &MemberError{Path: name + "." + inner.Path}
	}
	return &MemberError{Path: name}
}

var errKind = errors.New("another kind of value")

// DecodeField does what encoding/json does, with four differences. It does not check the text
// again, a json.RawMessage becomes a slice of the text, WholeNumber reads integers, and
// DecodeObject reads structs.
func (c Codec) DecodeField(value []byte, field reflect.Value) error {
	if known, err := c.Decode(value, field.Addr().Interface()); known {
		return err
	}
	if field.Type() == reflect.TypeFor[json.RawMessage]() {
		field.SetBytes(value)
		return nil
	}
	kind := jsonspan.KindOf(value)
	switch field.Kind() {
	case reflect.Int64:
		if kind == jsonspan.Number {
			n, err := WholeNumber(value)
			field.SetInt(n)
			return err
		}
	case reflect.String:
		if kind == jsonspan.String {
			field.SetString(jsonspan.Text(value[1 : len(value)-1]))
			return nil
		}
	case reflect.Struct:
		return c.decodeObject(value, field)
	case reflect.Pointer:
		if field.Type().Elem().Kind() == reflect.Struct && kind != jsonspan.Null {
			field.Set(reflect.New(field.Type().Elem()))
			return c.DecodeField(value, field.Elem())
		}
	case reflect.Slice:
		if field.Type().Elem().Kind() == reflect.Struct && kind != jsonspan.Null {
			return c.decodeElements(value, kind, field)
		}
	}
	return json.Unmarshal(value, field.Addr().Interface())
}

func (c Codec) decodeElements(value []byte, kind jsonspan.Kind, list reflect.Value) error {
	if kind != jsonspan.Array {
		return errKind
	}
	list.Set(reflect.MakeSlice(list.Type(), 0, 1))
	for element := range jsonspan.ElementsOf(value) {
		list.Set(reflect.Append(list, reflect.Zero(list.Type().Elem())))
		if err := c.DecodeField(element, list.Index(list.Len()-1)); err != nil {
			return err
		}
	}
	return nil
}

// WholeNumber reads a JSON number, cutting off a fraction: some servers write a float where an
// integer is meant.
func WholeNumber(value []byte) (int64, error) {
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
	// "lax": zero where the type is another; "text": an object is its text
	read string
}

// fieldsOf lists the fields of a struct that have a name in their json tags, in their order. extra
// is the index of its field Extra, or -1.
func fieldsOf(t reflect.Type) (fields []objectField, extra int) {
	fields, extra = make([]objectField, 0, t.NumField()), -1
	for i := range t.NumField() {
		field := t.Field(i)
		if field.Name == "Extra" {
			extra = i
		}
		name, option, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			fields = append(fields, objectField{name: name, index: i,
				omitEmpty: option == "omitempty", omitZero: option == "omitzero",
				read: t.Field(i).Tag.Get("read")})
		}
	}
	return fields, extra
}
