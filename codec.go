// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// This file ties the JSON types to internal/chatjson, which knows none of them.

// appender is a type that writes itself as JSON.
type appender interface {
	appendJSON(dst []byte) ([]byte, error)
}

// decoder is a type that reads itself from JSON text that was checked before. It may keep slices of
// it.
type decoder interface {
	decodeJSON(valid []byte) error
}

// codec is never changed.
var codec = chatjson.Codec{
	Append: func(dst []byte, v any) ([]byte, bool, error) {
		a, ok := v.(appender)
		if !ok {
			return nil, false, nil
		}
		dst, err := a.appendJSON(dst)
		return dst, true, err
	},
	Decode: func(valid []byte, v any) (bool, error) {
		d, ok := v.(decoder)
		if !ok {
			return false, nil
		}
		return true, d.decodeJSON(valid)
	},
}

// unmarshal is for the UnmarshalJSON of a decoder.
func unmarshal(data []byte, v decoder) error {
	if jsonspan.Valid(data, chatjson.MaxDepth) != nil {
		return chatjson.ErrNoObject
	}
	return v.decodeJSON(data)
}

// decodeError gives an error of decoding an answer its type.
func decodeError(err error) error {
	if bad, ok := errors.AsType[*chatjson.MemberError](err); ok {
		return chatjson.SchemaError(bad.Path, "unexpected type or out of range")
	}
	return fmt.Errorf("%w: %w", ErrResponseSchema, err)
}

// checkCompletion demands that an opened answer is a chat.completion object, that it does not name
// another request than payloadID, and no lower tier than was asked for.
func checkCompletion(data []byte, payloadID string, tier SecurityTier) error {
	asked := chatjson.Asked{PayloadID: payloadID}
	if tier != "" {
		asked.TooLow = func(said string) bool { return SecurityTier(said).rank() < tier.rank() }
	}
	return answerError(chatjson.CheckCompletion(data, asked))
}

// answerError makes an *APIError of an error object that came sealed, with status 200.
func answerError(err error) error {
	failed, ok := errors.AsType[*chatjson.ErrorObject](err)
	if !ok {
		return err
	}
	// as of an error in the clear, only so much is looked at
	if len(failed.Data) > httpx.MaxErrorBody {
		return newSealedError(http.StatusOK, 0, "", "")
	}
	code, detail := errorDetail(failed.Data)
	return newSealedError(http.StatusOK, 0, code, detail).keeping(failed.Data)
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
			for _, v := range p.Extra { // sound and files
				n += len(v)
			}
		}
	}
	return n + n/16 + 64*len(r.Messages) + 512 // a sixteenth for escapes
}
