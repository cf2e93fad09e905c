// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/sse"
)

func FuzzChatChunk(f *testing.F) {
	f.Add("", []byte(`{"choices":[{"index":0,"delta":{"content":"a","tool_calls":[{"index":0,"function":{}}]},"logprobs":{"content":[1]}}],"usage":{}}`))
	f.Add("error", []byte(`{"error":{"message":"x"}}`))
	f.Add("", []byte(`{"choices":[{"delta":null},{"delta":{"x":"\ud83d"}},{"delta":{"x":["y"]}}]}`))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		chunk, err := parseChunk(sse.Event{Name: name, Data: data})
		if err != nil {
			if _, api := errors.AsType[*APIError](err); !api && !errors.Is(err, ErrResponseSchema) {
				t.Fatalf("%v", err)
			}
			return
		}
		var a ChatAccumulator
		a.Add(chunk)
		a.Add(chunk)
		for _, c := range a.Response().Choices {
			for name, v := range c.Message.Extra {
				if !json.Valid(v) {
					t.Errorf("%s: %q", name, v)
				}
			}
			for name, v := range c.Extra {
				if !json.Valid(v) {
					t.Errorf("%s: %q", name, v)
				}
			}
		}
	})
}
