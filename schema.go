// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"fmt"
	"iter"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// This file checks JSON in place: what is about to be sealed, and what was opened.

const maxDepth = 10_000 // nesting of requests and answers; encoding/json has the same limit

// spokenOutside are request members of other clients that belong into headers or configuration. Sealing them would
// send them to the model instead.
var spokenOutside = []string{"api_key", "base_url", "security_tier"}

// checkRequest demands a JSON object without members that are spoken outside the envelope.
func checkRequest(plaintext []byte) error {
	if !validObject(plaintext) {
		return fmt.Errorf("%w: the request is not a JSON object in valid UTF-8", ErrInvalidRequest)
	}
	return checkSpokenOutside(plaintext)
}

// checkSpokenOutside is the second half of checkRequest, for an object that was checked before.
func checkSpokenOutside(plaintext []byte) error {
	for m := range jsonspan.MembersOf(plaintext) {
		for _, name := range spokenOutside {
			if m.Is(name) {
				return fmt.Errorf("%w: %s does not belong into the request; see Config and CallOption", ErrInvalidRequest, name)
			}
		}
	}
	return nil
}

func validObject(data []byte) bool {
	return jsonspan.Valid(data, maxDepth) == nil && jsonspan.KindOf(data) == jsonspan.Object
}

// schemaError says which member of an answer is not as it has to be. The path is made of known names and numbers.
func schemaError(path, want string) error {
	return fmt.Errorf("%w: %s: %s", ErrResponseSchema, path, want)
}

// members are an object's members of interest. A name that is repeated counts the last time.
type members map[string][]byte

// pick finds the named members of an object in JSON that was checked before; others are passed over. ok is false when
// data is not an object, or nothing at all.
func pick(data []byte, names ...string) (_ members, ok bool) {
	if jsonspan.KindOf(data) != jsonspan.Object {
		return nil, false
	}
	o := make(members, len(names))
	for m := range jsonspan.MembersOf(data) {
		for _, name := range names {
			if m.Is(name) {
				o[name] = m.Value
			}
		}
	}
	return o, true
}

// elements walks an array in JSON that was checked before. ok is false when data is not one.
func elements(data []byte) (_ iter.Seq[[]byte], ok bool) {
	if jsonspan.KindOf(data) != jsonspan.Array {
		return func(func([]byte) bool) {}, false
	}
	return jsonspan.ElementsOf(data), true
}

// kind is the kind of a member's value; absent members have none.
func (o members) kind(name string) (jsonspan.Kind, bool) {
	v, ok := o[name]
	if !ok {
		return 0, false
	}
	return jsonspan.KindOf(v), true
}

func (o members) is(name string, kinds ...jsonspan.Kind) bool {
	k, ok := o.kind(name)
	if !ok {
		return false
	}
	for _, want := range kinds {
		if k == want {
			return true
		}
	}
	return false
}

// text is the value of a string member, bounded; "" when it is anything else.
func (o members) text(name string) string {
	v := o[name]
	if !o.is(name, jsonspan.String) || len(v) > 1024 {
		return ""
	}
	return string(jsonspan.Unescape(nil, v[1:len(v)-1]))
}

// checkCompletion demands that an opened answer is a chat.completion object, that it does not name another request
// than payloadID, and no lower tier than was asked for.
func checkCompletion(data []byte, payloadID string, tier SecurityTier) error {
	if !validObject(data) {
		return schemaError("the answer", "not a JSON object in valid UTF-8")
	}
	return checkCompletionObject(data, payloadID, tier)
}

// checkCompletionObject is checkCompletion for an object in JSON that was checked before.
func checkCompletionObject(data []byte, payloadID string, tier SecurityTier) error {
	o, _ := pick(data, "id", "object", "created", "model", "choices", "error", "_metadata")
	// Whose answer it is comes first: an error that belongs to another request must not be believed either.
	if err := checkMetadata(o["_metadata"], payloadID, tier); err != nil {
		return err
	}
	if k, ok := o.kind("error"); ok && k != jsonspan.Null && !o.is("choices", jsonspan.Array) {
		return sealedAPIError(data)
	}
	for _, name := range []string{"id", "model"} {
		if !o.is(name, jsonspan.String, jsonspan.Null) {
			return schemaError(name, "want a string or null")
		}
	}
	if o.text("object") != "chat.completion" {
		return schemaError("object", "want \"chat.completion\"")
	}
	if !o.is("created", jsonspan.Number) {
		return schemaError("created", "want a number")
	}
	if !o.is("choices", jsonspan.Array) {
		return schemaError("choices", "want an array")
	}
	return checkChoices(o["choices"])
}

func checkChoices(data []byte) error {
	choices, _ := elements(data)
	i := 0
	for choice := range choices {
		if i >= maxWeight {
			return schemaError("choices", "too many")
		}
		path := fmt.Sprintf("choices[%d]", i)
		o, ok := pick(choice, "message")
		if !ok {
			return schemaError(path, "want an object")
		}
		message, ok := pick(o["message"], "content")
		if !ok {
			return schemaError(path+".message", "want an object")
		}
		if err := checkContent(path+".message.content", message); err != nil {
			return err
		}
		i++
	}
	return nil
}

// maxWeight bounds how much of an answer becomes Go values: members and elements that are decoded one by one. A few bytes
// of JSON ("{},") cost hundreds in memory, and in version 1 anybody where TLS ends can make up an answer.
const maxWeight = 1 << 16

// checkWeight is for a checked completion that is about to be decoded.
func checkWeight(data []byte) error {
	n := membersIn(data)
	o, _ := pick(data, "choices", "usage", "_metadata")
	n += membersIn(o["usage"]) + membersIn(o["_metadata"])
	choices, _ := elements(o["choices"])
	for choice := range choices {
		n += 1 + membersIn(choice)
		c, _ := pick(choice, "message")
		m, _ := pick(c["message"], "content", "tool_calls")
		n += membersIn(c["message"])
		for _, list := range m {
			items, _ := elements(list)
			for item := range items {
				n += 1 + membersIn(item)
				if jsonspan.KindOf(item) == jsonspan.Object {
					for member := range jsonspan.MembersOf(item) {
						n += membersIn(member.Value)
					}
				}
				if n > maxWeight {
					break
				}
			}
		}
		if n > maxWeight {
			break
		}
	}
	if n > maxWeight {
		return schemaError("the answer", "more members than are decoded")
	}
	return nil
}

func membersIn(data []byte) (n int) {
	if jsonspan.KindOf(data) == jsonspan.Object {
		for range jsonspan.MembersOf(data) {
			n++
		}
	}
	return n
}

// checkContent: absent, null, a string, or an array of parts, which are objects with a type.
func checkContent(path string, message members) error {
	k, ok := message.kind("content")
	if !ok || k == jsonspan.Null || k == jsonspan.String {
		return nil
	}
	parts, ok := elements(message["content"])
	if !ok {
		return schemaError(path, "want a string, null or parts")
	}
	for part := range parts {
		if o, ok := pick(part, "type"); !ok || !o.is("type", jsonspan.String) {
			return schemaError(path, "want parts that are objects with a type")
		}
	}
	return nil
}

// checkMetadata looks at a sealed _metadata object. Whatever else stands there says nothing.
func checkMetadata(data []byte, payloadID string, tier SecurityTier) error {
	o, ok := pick(data, "payload_id", "security_tier")
	if !ok {
		return nil
	}
	if id := strings.ToLower(o.text("payload_id")); isUUID(id) && id != payloadID {
		return fmt.Errorf("%w: it belongs to another request", ErrReplay)
	}
	// A tier that is not known cannot be shown to be high enough.
	if v := o["security_tier"]; tier != "" && o.is("security_tier", jsonspan.String) && len(v) > len(`""`) {
		if SecurityTier(o.text("security_tier")).rank() < tier.rank() {
			return ErrTierDowngrade
		}
	}
	return nil
}

// sealedAPIError is an error object that came sealed, with status 200.
func sealedAPIError(data []byte) error {
	e := &APIError{StatusCode: 200}
	if len(data) > httpx.MaxErrorBody {
		return e // as of an error in the clear, only so much is looked at
	}
	e.Code, e.Detail = errorDetail(data)
	return e
}

// isUUID: 8-4-4-4-12 lower-case hex digits.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return false
			}
		}
	}
	return true
}
