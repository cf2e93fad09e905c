// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// Seal encrypts data to be kept outside the process, under a key that is derived from the store's
// newest data key and label.
func (s *Store) Seal(label string, plaintext []byte) ([]byte, error) {
	if len(label) > keyfile.MaxLabelSize {
		return nil, fmt.Errorf("%w: label of %d bytes, limit %d",
			fault.ErrInvalidRequest, len(label), keyfile.MaxLabelSize)
	}
	defer s.sweeper.Soon()
	key, generation, err := s.dataKey(0)
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	sealed, err := keyfile.SealData(key.Bytes(), generation, label, plaintext)
	if err != nil {
		return nil, storeError(err)
	}
	e := Event{Type: DataSealed, Bytes: int64(len(plaintext)), Generation: generation}
	if err := s.tell(context.Background(), e); err != nil {
		return nil, err
	}
	return sealed, nil
}

// Open decrypts what Seal returned under the same label. The caller wipes the result.
func (s *Store) Open(label string, sealed []byte) ([]byte, error) {
	defer s.sweeper.Soon()
	var key *locked.Buffer
	plaintext, err := keyfile.OpenData(func(generation uint32) (_ []byte, err error) {
		if key, _, err = s.dataKey(generation); err != nil {
			return nil, err
		}
		return key.Bytes(), nil
	}, label, sealed)
	if key != nil {
		key.Destroy()
	}
	if err != nil {
		return nil, s.tellUnopened(storeError(err))
	}
	e := Event{Type: DataOpened, Bytes: int64(len(plaintext))}
	if err := s.tell(context.Background(), e); err != nil {
		clear(plaintext)
		return nil, err
	}
	return plaintext, nil
}

// dataKey copies the data key of a generation, or the newest for 0. The caller destroys it.
func (s *Store) dataKey(generation uint32) (*locked.Buffer, uint32, error) {
	if s.dir == nil {
		return nil, 0, fmt.Errorf("%w: an ephemeral key store keeps no data keys",
			fault.ErrInvalidRequest)
	}
	if s.isNewer(generation) { // another process may have begun it
		if err := s.refresh(s.life); errors.Is(err, errChangedElsewhere) {
			return nil, 0, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.dataKeysAt == nil || (len(s.dataKeys) > 0) != (s.dataKeysAt.Bytes() != nil) {
		return nil, 0, s.errClosed() // closed, or memguard's memory was purged by the program
	}
	for _, k := range slices.Backward(s.dataKeys) {
		if generation == 0 || k.generation == generation {
			key, err := s.memory.Alloc(hybrid.DataKeySize)
			if err != nil {
				return nil, 0, err
			}
			erase.Do(func() { copy(key.Bytes(), k.key) }) // a copy goes through registers
			return key, k.generation, nil
		}
	}
	return nil, 0, fault.ErrDecryption
}

func (s *Store) isNewer(generation uint32) bool {
	newest := s.DataGeneration()
	return newest > 0 && generation > newest
}

// UseDataKey lends f the data key of a generation, or the newest one for 0, and returns its
// generation. ErrDecryption: there is no such generation.
func (s *Store) UseDataKey(generation uint32, f func(dataKey []byte) error) (uint32, error) {
	key, generation, err := s.dataKey(generation)
	if err != nil {
		return 0, err
	}
	defer key.Destroy()
	defer s.sweeper.Soon()
	erase.Do(func() { err = f(key.Bytes()) })
	if err != nil {
		return 0, storeError(err)
	}
	return generation, nil
}

// DataGeneration is the newest generation of data keys that is known here; 0 if there is none.
func (s *Store) DataGeneration() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.dataKeys); n > 0 {
		return s.dataKeys[n-1].generation
	}
	return 0
}
