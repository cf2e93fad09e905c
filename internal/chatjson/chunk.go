// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import "github.com/seed-017344ad/sealedchat/internal/jsonspan"

// CheckChunk demands that the data of an event is a chat.completion.chunk that is worth decoding.
// name is the event's. An event that is an error is *ErrorObject.
func CheckChunk(name string, data []byte) error {
	if !ValidObject(data) {
		if name == "error" {
			return &ErrorObject{}
		}
		return SchemaError("a chunk", "not a JSON object in valid UTF-8")
	}
	o, _ := Pick(data, "object", "choices", "error")
	// Some servers put what went wrong midway into a chunk like any other, with choices.
	if k, ok := o.Kind("error"); name == "error" || (ok && k != jsonspan.Null) {
		return &ErrorObject{data}
	}
	if object := o.Text("object"); object != "" && object != "chat.completion.chunk" {
		return SchemaError("object", "want \"chat.completion.chunk\"")
	}
	if !o.Is("choices", jsonspan.Array) {
		return SchemaError("choices", "want an array")
	}
	if chunkWeight(data, o["choices"]) > MaxWeight {
		return SchemaError("a chunk", "more members than are decoded")
	}
	return nil
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
