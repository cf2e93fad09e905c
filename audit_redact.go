// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// secretNames are what a member's name contains whose value is nobody's business.
var secretNames = []string{"key", "password", "passphrase", "secret", "token", "authorization"}

// redactDetails copies details as JSON sees them, which is how they are written, and replaces what is secret.
func redactDetails(details map[string]any) (map[string]any, error) {
	if len(details) == 0 {
		return nil, nil
	}
	text, err := json.Marshal(details)
	if err != nil {
		return nil, err
	}
	var copied map[string]any
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber() // 2^60 stays what it is
	if err := dec.Decode(&copied); err != nil {
		return nil, err
	}
	redact(copied)
	return copied, nil
}

// redact works in place. encoding/json bounds the depth.
func redact(v any) {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if namesSecret(name) {
				v[name] = redacted
			} else {
				redact(value)
			}
		}
	case []any:
		for _, value := range v {
			redact(value)
		}
	}
}

// namesSecret folds case in both directions: some letters have only one lower or upper neighbour in ASCII.
func namesSecret(name string) bool {
	name = strings.ToLower(strings.ToUpper(name))
	for _, secret := range secretNames {
		if strings.Contains(name, secret) {
			return true
		}
	}
	return false
}

// jsonProblem says what kept a value from becoming JSON, without repeating the value.
func jsonProblem(err error) string {
	if e, ok := errors.AsType[*json.UnsupportedTypeError](err); ok {
		return fmt.Sprintf("a %s is no JSON", e.Type)
	}
	return "not JSON"
}
