// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import (
	"bytes"

	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
	"github.com/seed-017344ad/sealedchat/internal/sse"
)

// CheckChunk tells whether an event is a chat.completion.chunk that is worth decoding. Events that
// say nothing about the answer are none: those without data, with null, and those of other names
// that hold no chunk. An event that is an error is *ErrorObject, and one that should be a chunk and
// is not, fault.ErrResponseSchema.
func CheckChunk(e sse.Event) (chunk bool, err error) {
	if value, failed := e.Error(); failed {
		return false, errorObject(value)
	}
	data := sse.Trim(e.Data)
	name := string(bytes.TrimSpace([]byte(e.Name)))
	ours := name == "" || name == "message"
	switch {
	case len(data) == 0, string(data) == "null":
		return false, nil
	case !ValidObject(data):
		if !ours {
			return false, nil
		}
		return false, SchemaError("a chunk", "not a JSON object in valid UTF-8")
	}
	o, _ := Pick(data, "object", "choices", "usage")
	object := o.Text("object")
	switch kind, _ := o.Kind("choices"); {
	case kind == jsonspan.Array:
	case !o.Is("usage", jsonspan.Object) && object != objectChunk && !ours, name == "error":
		return false, nil
	case isOtherObject(object), object == objectCompletion: // said below
	case kind != jsonspan.Null, !o.Is("usage", jsonspan.Object) && object != objectChunk:
		return false, SchemaError("choices", "want an array")
	}
	if isOtherObject(object) || object == objectCompletion {
		return false, SchemaError("object", "want \"chat.completion.chunk\"")
	}
	if chunkWeight(data, o["choices"]) > MaxWeight {
		return false, SchemaError("a chunk", "more members than are decoded")
	}
	return true, checkChoices(o["choices"], checkPiece)
}

// checkPiece says which member of a chunk's choice is not as it has to be.
func checkPiece(choice []byte) (member, want string) {
	if jsonspan.KindOf(choice) != jsonspan.Object {
		return "", "want an object"
	}
	if want := checkIndex(Last(choice, "index")); want != "" {
		return ".index", want
	}
	delta := Last(choice, "delta")
	switch jsonspan.KindOf(delta) {
	case jsonspan.Null:
		return "", ""
	case jsonspan.Object:
		return checkMessage(".delta", delta, checkCallPiece)
	}
	return ".delta", "want an object"
}

// checkCallPiece looks at a piece of a tool call, which need not say anything of the function.
func checkCallPiece(piece []byte) (member, want string) {
	function := Last(piece, "function")
	if function != nil && jsonspan.KindOf(function) == jsonspan.Null &&
		jsonspan.KindOf(piece) == jsonspan.Object {
		return "", ""
	}
	return checkCall(piece)
}

// errorObject makes OpenAI's error object of the value of an error, which may be no JSON.
func errorObject(value []byte) *ErrorObject {
	const open = `{"error":`
	if jsonspan.Valid(value, MaxDepth-1) != nil {
		value = jsonspan.AppendString(nil, string(value))
	}
	if jsonspan.KindOf(value) == jsonspan.Object {
		return &ErrorObject{append(append([]byte(open), value...), '}')}
	}
	if jsonspan.KindOf(value) != jsonspan.String {
		value = jsonspan.AppendString(nil, string(value))
	}
	return &ErrorObject{append(append([]byte(open+`{"message":`), value...), "}}"...)}
}

// chunkWeight counts what of a chunk becomes Go values.
func chunkWeight(chunk, list []byte) int {
	o, _ := Pick(chunk, "usage")
	n := MembersIn(chunk) + MembersIn(o["usage"])
	choices, _ := Elements(list)
	for choice := range choices {
		c, _ := Pick(choice, "delta")
		d, _ := Pick(c["delta"], "tool_calls")
		n += 1 + MembersIn(choice) + MembersIn(c["delta"])
		calls, _ := Elements(d["tool_calls"])
		for call := range calls {
			f, _ := Pick(call, "function")
			n += 1 + MembersIn(call) + MembersIn(f["function"])
		}
		if n > MaxWeight {
			break
		}
	}
	return n
}
