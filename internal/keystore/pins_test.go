// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"fmt"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
)

func TestFirstUseIsBounded(t *testing.T) {
	s, _ := weakStore(t, nil)
	err := s.change(t.Context(), func(b *keyfile.Body) error {
		for i := range keyfile.MaxPins {
			if err := appendPin(b, keyfile.Pin{Origin: fmt.Sprint("https://", i)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	key := [32]byte{1}
	_, err = s.AddPin(t.Context(), "https://one.more", key)
	wantError(t, "one more", err, fault.ErrTooLarge)
	if _, ok := s.Pin("https://one.more"); ok {
		t.Error("it is remembered all the same")
	}
	few, _ := weakStore(t, nil)
	_, err = few.AddPin(t.Context(), "https://"+strings.Repeat("x", keyfile.MaxOriginSize), key)
	wantError(t, "a long origin", err, fault.ErrTooLarge)
}
