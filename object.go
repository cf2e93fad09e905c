// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// JSON objects of which this package knows some members, and keeps the others as they are. encoding/json alone
// matches names without regard to case and drops what it does not know; here names are exact.

// memberError says which member does not fit its Go type. It holds names and no values.
type memberError struct{ path string }

func (e *memberError) Error() string { return e.path + " does not fit its type" }

// encodeObject marshals the struct v and appends extra's members, in the order of their names. A name that v knows
// already is an error.
func encodeObject[V any](v any, extra map[string]V) ([]byte, error) {
	var buf bytes.Buffer
	if err := encodeJSON(&buf, v); err != nil {
		return nil, err
	}
	if len(extra) == 0 {
		return buf.Bytes(), nil
	}
	known := fieldsOf(reflect.TypeOf(v))
	buf.Truncate(buf.Len() - len("}"))
	for _, name := range slices.Sorted(maps.Keys(extra)) {
		if _, taken := known[name]; taken {
			return nil, fmt.Errorf("%w: Extra[%q] has a field of its own", ErrInvalidRequest, name)
		}
		if buf.Len() > len("{") {
			buf.WriteByte(',')
		}
		if err := encodeJSON(&buf, name); err != nil {
			return nil, err
		}
		buf.WriteByte(':')
		if err := encodeJSON(&buf, extra[name]); err != nil {
			return nil, fmt.Errorf("%w: Extra[%q] cannot be marshalled", ErrInvalidRequest, name)
		}
	}
	buf.WriteByte('}')
	return buf.Bytes(), nil
}

func marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	err := encodeJSON(&buf, v)
	return buf.Bytes(), err
}

// encodeJSON appends v without the escapes for HTML, which only cost tokens.
func encodeJSON(buf *bytes.Buffer, v any) error {
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		if invalid, ok := errors.AsType[*json.MarshalerError](err); ok && errors.Is(invalid, ErrInvalidRequest) {
			return invalid.Unwrap()
		}
		return fmt.Errorf("%w: cannot be marshalled", ErrInvalidRequest) // the cause could quote a value
	}
	buf.Truncate(buf.Len() - len("\n"))
	return nil
}

// decodeObject sets the fields of the struct that v points to from the members that its json tags name, and returns
// the others, as slices of data.
func decodeObject(data []byte, v any) (map[string]json.RawMessage, error) {
	all, err := jsonspan.Members(data, maxDepth)
	if err != nil {
		return nil, &memberError{path: "the object"}
	}
	target := reflect.ValueOf(v).Elem()
	known := fieldsOf(target.Type())
	var extra map[string]json.RawMessage
	values := make(map[string][]byte, len(known))
	for m := range all {
		name := string(jsonspan.Unescape(nil, m.Name))
		if _, ok := known[name]; ok {
			values[name] = m.Value // the last of a repeated name counts
			continue
		}
		if extra == nil {
			extra = make(map[string]json.RawMessage)
		}
		extra[name] = m.Value
	}
	for name, value := range values {
		if err := decodeField(value, target.Field(known[name])); err != nil {
			return nil, prefixPath(name, err)
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

func decodeField(value []byte, field reflect.Value) error {
	if field.Kind() == reflect.Int64 && jsonspan.KindOf(value) == jsonspan.Number {
		n, err := wholeNumber(value)
		field.SetInt(n)
		return err
	}
	return json.Unmarshal(value, field.Addr().Interface())
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

// fieldsOf maps the names in a struct's json tags to the indices of its fields.
func fieldsOf(t reflect.Type) map[string]int {
	fields := make(map[string]int, t.NumField())
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name != "" && name != "-" {
			fields[name] = i
		}
	}
	return fields
}
