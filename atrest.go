// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// MaxSealedData is the most that [KeyStore.Seal] takes, in bytes: 100 MiB.
const MaxSealedData = keyfile.MaxDataSize

// Seal encrypts data to be kept outside the process: AES-256-GCM under a key derived by HKDF-SHA256 from the store's
// data key, a fresh salt, and label. The label, up to 1,024 bytes, says what the data is, and [KeyStore.Open] must be
// given the same one, so that one blob cannot take another's place. The result is 69 bytes longer than plaintext, which
// stays as it is.
//
// Errors: [ErrTooLarge] over 100 MiB, [ErrInvalidRequest] for a longer label, and for an ephemeral store, which could never
// open it again; [ErrClosed], [ErrMemoryLimit], [ErrAudit].
func (s *KeyStore) Seal(label string, plaintext []byte) ([]byte, error) {
	if len(label) > keyfile.MaxLabelSize {
		return nil, fmt.Errorf("%w: label of %d bytes, limit %d", ErrInvalidRequest, len(label), keyfile.MaxLabelSize)
	}
	defer s.sweeper.Soon()
	key, generation, err := s.dataKey(0)
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	sealed, err := keyfile.SealData(key.Bytes(), generation, label, plaintext)
	if err != nil {
		return nil, keyStoreError(err)
	}
	e := Event{Type: EventDataSealed, Bytes: int64(len(plaintext)), Generation: generation}
	if err := s.tell(context.Background(), e); err != nil {
		return nil, err
	}
	return sealed, nil
}

// Open decrypts what [KeyStore.Seal] returned under the same label, also after a change of the passphrase and after
// rotations. sealed stays as it is; the result is new memory, which the caller wipes. Whatever does not open is
// [ErrDecryption]; [ErrPassphrase] when it was sealed after another process changed the passphrase. Other errors are those
// of Seal.
func (s *KeyStore) Open(label string, sealed []byte) ([]byte, error) {
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
		return nil, s.tellUnopened(keyStoreError(err))
	}
	if err := s.tell(context.Background(), Event{Type: EventDataOpened, Bytes: int64(len(plaintext))}); err != nil {
		clear(plaintext)
		return nil, err
	}
	return plaintext, nil
}

// dataKey copies the data key of a generation, or the newest for 0. The caller destroys it.
func (s *KeyStore) dataKey(generation uint32) (*locked.Buffer, uint32, error) {
	if s.dir == nil {
		return nil, 0, fmt.Errorf("%w: an ephemeral key store keeps no data keys", ErrInvalidRequest)
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
			copy(key.Bytes(), k.key)
			return key, k.generation, nil
		}
	}
	return nil, 0, ErrDecryption
}

func (s *KeyStore) isNewer(generation uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.dataKeys)
	return n > 0 && generation > s.dataKeys[n-1].generation
}
