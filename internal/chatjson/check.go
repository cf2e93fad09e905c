// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import (
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
	"github.com/seed-017344ad/sealedchat/internal/sse"
)

// This file checks JSON in place: what is about to be sealed, and what was opened.

// MaxDepth bounds the nesting of requests and answers. encoding/json has the same limit.
const MaxDepth = 10_000

// SpokenOutside are request members of other clients that belong into headers or configuration.
// Sealing them would send them to the model instead.
var SpokenOutside = []string{"api_key", "base_url", "security_tier"}

// CheckRequest demands a JSON object without members that are spoken outside the envelope.
func CheckRequest(plaintext []byte) error {
	if err := checkRequestObject(plaintext); err != nil {
		return err
	}
	for m := range jsonspan.MembersOf(plaintext) {
		if err := checkMember(m); err != nil {
			return err
		}
	}
	return nil
}

func checkRequestObject(plaintext []byte) error {
	if !ValidObject(plaintext) {
		return fmt.Errorf("%w: the request is not a JSON object in valid UTF-8",
			fault.ErrInvalidRequest)
	}
	return nil
}

func checkMember(m jsonspan.Member) error {
	for _, name := range SpokenOutside {
		if m.Is(name) {
			return CheckName(name)
		}
	}
	return nil
}

// CheckName refuses the name of a member that is spoken outside the envelope.
func CheckName(name string) error {
	if slices.Contains(SpokenOutside, name) {
		return fmt.Errorf("%w: %s does not belong into the request; see Config and CallOption",
			fault.ErrInvalidRequest, name)
	}
	return nil
}

// ValidObject tells whether data is a JSON object in valid UTF-8, not nested too deep.
func ValidObject(data []byte) bool {
	return jsonspan.Valid(data, MaxDepth) == nil && jsonspan.KindOf(data) == jsonspan.Object
}

// SchemaError says which member of an answer is not as it has to be. The path is made of known
// names and numbers.
func SchemaError(path, want string) error {
	return fmt.Errorf("%w: %s: %s", fault.ErrResponseSchema, path, want)
}

// Members are an object's members of interest. A name that is repeated counts the last time.
type Members map[string][]byte

// Pick finds the named members of an object in JSON that was checked before; others are passed
// over. ok is false when data is not an object, or nothing at all.
func Pick(data []byte, names ...string) (_ Members, ok bool) {
	if jsonspan.KindOf(data) != jsonspan.Object {
		return nil, false
	}
	o := make(Members, len(names))
	for m := range jsonspan.MembersOf(data) {
		for _, name := range names {
			if m.Is(name) {
				o[name] = m.Value
			}
		}
	}
	return o, true
}

// Last is the value of the named member of an object in JSON that was checked before: the last one,
// if there are several, or nil.
func Last(data []byte, name string) (value []byte) {
	for m := range jsonspan.MembersOf(data) {
		if m.Is(name) {
			value = m.Value
		}
	}
	return value
}

// lastTwo is Last for two names. Each walk over a message passes all of its text.
func lastTwo(data []byte, first, second string) (one, other []byte) {
	for m := range jsonspan.MembersOf(data) {
		switch {
		case m.Is(first):
			one = m.Value
		case m.Is(second):
			other = m.Value
		}
	}
	return one, other
}

// Elements walks an array in JSON that was checked before. ok is false when data is not one.
func Elements(data []byte) (_ iter.Seq[[]byte], ok bool) {
	if jsonspan.KindOf(data) != jsonspan.Array {
		return func(func([]byte) bool) {}, false
	}
	return jsonspan.ElementsOf(data), true
}

// Kind is the kind of a member's value; absent members have none.
func (o Members) Kind(name string) (jsonspan.Kind, bool) {
	v, ok := o[name]
	if !ok {
		return 0, false
	}
	return jsonspan.KindOf(v), true
}

func (o Members) Is(name string, kinds ...jsonspan.Kind) bool {
	k, ok := o.Kind(name)
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

// Text is the value of a string member, bounded; "" when it is anything else.
func (o Members) Text(name string) string {
	v := o[name]
	if !o.Is(name, jsonspan.String) || len(v) > 1024 {
		return ""
	}
	return string(jsonspan.Unescape(nil, v[1:len(v)-1]))
}

// Asked is what an answer has to agree with.
type Asked struct {
	PayloadID string                 // of the request: no answer may name another one
	TooLow    func(tier string) bool // whether a tier is lower than was asked for; nil: none was
}

// ErrorObject is an error object that came in place of an answer, or of the rest of one. Its text
// has none of it.
type ErrorObject struct{ Data []byte } // an object with a member "error", as a whole

func (e *ErrorObject) Error() string { return "sealedchat: an error object in place of an answer" }

// CheckCompletion demands that an opened answer is a chat.completion object, that it does not name
// another request, and no lower tier than was asked for. An answer that is an error is
// *ErrorObject. All that becomes Go values is looked at here, or else has a zero value if it has
// not its type: whoever reads a checked answer comes to no other verdict.
func CheckCompletion(data []byte, asked Asked) error {
	if !ValidObject(data) {
		return SchemaError("the answer", "not a JSON object in valid UTF-8")
	}
	return CheckCompletionObject(data, asked)
}

// CheckCompletionObject is CheckCompletion for an object in JSON that was checked before.
func CheckCompletionObject(data []byte, asked Asked) error {
	o, _ := Pick(data, "object", "choices", "error", "_metadata")
	// Whose answer it is comes first: an error that belongs to another request must not be believed
	// either.
	if err := checkMetadata(o["_metadata"], asked); err != nil {
		return err
	}
	if !sse.IsNothing(o["error"]) {
		return &ErrorObject{data}
	}
	if object := o.Text("object"); isOtherObject(object) || object == objectChunk {
		return SchemaError("object", "want \"chat.completion\"")
	}
	if !o.Is("choices", jsonspan.Array) {
		return SchemaError("choices", "want an array")
	}
	return checkChoices(o["choices"], checkChoice)
}

const objectChunk, objectCompletion = "chat.completion.chunk", "chat.completion"

// isOtherObject tells the objects that are no part of a chat completion, whatever else they hold.
// Other names, or none, say nothing: servers write what they like.
func isOtherObject(name string) bool {
	return name == "error" || name == "list" || name == "response"
}

// checkChoices has check look at each choice, and say which member of it is not as it has to be.
func checkChoices(data []byte, check func(choice []byte) (member, want string)) error {
	i := 0
	for choice := range jsonspan.ElementsOf(data) {
		if i >= MaxWeight {
			return SchemaError("choices", "too many")
		}
		if member, want := check(choice); want != "" {
			return SchemaError(fmt.Sprintf("choices[%d]%s", i, member), want)
		}
		i++
	}
	return nil
}

// checkChoice says which member of a choice is not as it has to be; want is "" where all are.
func checkChoice(choice []byte) (member, want string) {
	if jsonspan.KindOf(choice) != jsonspan.Object {
		return "", "want an object"
	}
	message, index := lastTwo(choice, "message", "index")
	if jsonspan.KindOf(message) != jsonspan.Object {
		return ".message", "want an object"
	}
	if want := checkIndex(index); want != "" {
		return ".index", want
	}
	return checkMessage(".message", message, checkCall)
}

// checkIndex: two choices must not become one. An index that is no number is as good as none.
func checkIndex(index []byte) (want string) {
	if jsonspan.KindOf(index) == jsonspan.Number {
		if _, err := WholeNumber(index); err != nil {
			return "out of range"
		}
	}
	return ""
}

// checkMessage looks at a message, or at a piece of one.
func checkMessage(path string, message []byte,
	check func(call []byte) (member, want string)) (member, want string) {
	content, calls := lastTwo(message, "content", "tool_calls")
	if want := checkContent(content); want != "" {
		return path + ".content", want
	}
	switch jsonspan.KindOf(calls) {
	case jsonspan.Null:
		return "", ""
	case jsonspan.Array:
	default:
		return path + ".tool_calls", "want an array"
	}
	for call := range jsonspan.ElementsOf(calls) {
		if member, want := check(call); want != "" {
			return path + ".tool_calls" + member, want
		}
	}
	return "", ""
}

// checkCall looks at a tool call.
func checkCall(call []byte) (member, want string) {
	if jsonspan.KindOf(call) != jsonspan.Object {
		return "", "want objects"
	}
	function := Last(call, "function")
	if function == nil {
		return "", ""
	}
	if jsonspan.KindOf(function) != jsonspan.Object {
		return ".function", "want an object"
	}
	switch jsonspan.KindOf(Last(function, "name")) {
	case jsonspan.Null, jsonspan.String:
	default:
		return ".function.name", "want a string"
	}
	switch jsonspan.KindOf(Last(function, "arguments")) {
	case jsonspan.Null, jsonspan.String, jsonspan.Object:
		return "", ""
	}
	return ".function.arguments", "want a string or an object"
}

// MaxWeight bounds how much of an answer becomes Go values: members and elements that are decoded
// one by one. A few bytes of JSON ("{},") cost hundreds in memory, and in version 1 anybody where
// TLS ends can make up an answer.
const MaxWeight = 1 << 16

// CheckWeight is for a checked completion that is about to be decoded.
func CheckWeight(data []byte) error {
	o, _ := Pick(data, "choices", "usage", "_metadata")
	n := MembersIn(data) + MembersIn(o["usage"]) + MembersIn(o["_metadata"])
	for choice := range jsonspan.ElementsOf(o["choices"]) {
		n += 1 + MembersIn(choice)
		message := Last(choice, "message")
		n += MembersIn(message)
		for _, name := range [...]string{"content", "tool_calls"} {
			for item := range jsonspan.ElementsOf(Last(message, name)) {
				n += 1 + MembersIn(item)
				for member := range jsonspan.MembersOf(item) {
					n += MembersIn(member.Value)
				}
				if n > MaxWeight {
					break
				}
			}
		}
		if n > MaxWeight {
			break
		}
	}
	if n > MaxWeight {
		return SchemaError("the answer", "more members than are decoded")
	}
	return nil
}

// MembersIn counts the members of an object; other values have none.
func MembersIn(data []byte) (n int) {
	for range jsonspan.MembersOf(data) {
		n++
	}
	return n
}

// checkContent says what content has to be, if it is not: absent, null, a string, or an array of
// parts, which are objects with a type.
func checkContent(content []byte) (want string) {
	switch jsonspan.KindOf(content) {
	case jsonspan.Null, jsonspan.String:
		return ""
	case jsonspan.Array:
	default:
		return "want a string, null or parts"
	}
	for part := range jsonspan.ElementsOf(content) {
		if kind := jsonspan.KindOf(Last(part, "type")); kind != jsonspan.String {
			return "want parts that are objects with a type"
		}
		kind := jsonspan.KindOf(Last(part, "text"))
		if kind != jsonspan.Null && kind != jsonspan.String {
			return "want texts that are strings"
		}
		if image := Last(part, "image_url"); !isImage(image) {
			return "want image_url to be an object with a url"
		}
	}
	return ""
}

// isImage tells an image, or none.
func isImage(image []byte) bool {
	if kind := jsonspan.KindOf(image); kind != jsonspan.Object {
		return kind == jsonspan.Null
	}
	for _, name := range [...]string{"url", "detail"} {
		kind := jsonspan.KindOf(Last(image, name))
		if kind != jsonspan.Null && kind != jsonspan.String {
			return false
		}
	}
	return true
}

// checkMetadata looks at a sealed _metadata object. Whatever else stands there says nothing.
func checkMetadata(data []byte, asked Asked) error {
	o, ok := Pick(data, "payload_id", "security_tier")
	if !ok {
		return nil
	}
	if id := strings.ToLower(o.Text("payload_id")); IsUUID(id) && id != asked.PayloadID {
		return fmt.Errorf("%w: it belongs to another request", fault.ErrReplay)
	}
	// A tier that is not known cannot be shown to be high enough.
	if v := o["security_tier"]; asked.TooLow != nil && o.Is("security_tier", jsonspan.String) &&
		len(v) > len(`""`) {
		if asked.TooLow(o.Text("security_tier")) {
			return fault.ErrTierDowngrade
		}
	}
	return nil
}

// UUID is the text of a UUID (RFC 9562).
func UUID(b [16]byte) string {
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// IsUUID tells a UUID: 8-4-4-4-12 lower-case hex digits.
func IsUUID(s string) bool {
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
