// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
)

// Limits of sealed data.
const (
	MaxDataSize  = 100 << 20 // bytes of plaintext
	MaxLabelSize = 1 << 10   // bytes
)

const (
	dataMagic      = "SCDR\x01" // sealedchat data at rest, version 1
	dataHeaderSize = len(dataMagic) + 4 + saltSize
	dataPurpose    = "sealedchat data at rest v1"

	// DataOverhead is how much longer sealed data is than its plaintext.
	DataOverhead = dataHeaderSize + gcmOverhead
)

// SealData encrypts data under a label. OpenData needs the same label. dataKey has 32 bytes and the
// given generation. Each call derives a key of its own from dataKey by HKDF-SHA256 with a fresh
// salt, so that no number of calls wears dataKey out. The result is
//
//	magic and version [5] ‖ generation uint32 ‖ salt [32] ‖
//	nonce [12] ‖ AES-256-GCM ciphertext ‖ tag [16]
//
// with everything before the nonce as additional data. The error for a plaintext over MaxDataSize
// is ErrTooLarge.
func SealData(dataKey []byte, generation uint32, label string, plaintext []byte) ([]byte, error) {
	if len(plaintext) > MaxDataSize {
		return nil, fmt.Errorf("%w: more than %d bytes to seal", ErrTooLarge, MaxDataSize)
	}
	if len(dataKey) != dataKeySize || len(label) > MaxLabelSize {
		return nil, fmt.Errorf("%w: data keys have %d bytes, labels at most %d", ErrInvalid,
			dataKeySize, MaxLabelSize)
	}
	out := make([]byte, 0, len(plaintext)+DataOverhead)
	out = append(out, dataMagic...)
	out = binary.BigEndian.AppendUint32(out, generation)
	out = out[:dataHeaderSize]
	salt := out[dataHeaderSize-saltSize:]
	rand.Read(salt)
	err := withGCM(dataKey, salt, dataInfo(label), func(aead cipher.AEAD) error {
		out = aead.Seal(out, nil, plaintext, out)
		return nil
	})
	return out, err
}

// OpenData decrypts the result of SealData. lookup finds the data key of a generation; it keeps the
// key, and OpenData wraps its error. The caller wipes the plaintext. The error is ErrDecryption for
// data that does not open, and ErrTooLarge for a plaintext over MaxDataSize.
func OpenData(lookup func(generation uint32) ([]byte, error), label string, sealed []byte) ([]byte,
	error) {
	if len(sealed) > MaxDataSize+DataOverhead {
		return nil, fmt.Errorf("%w: more than %d bytes to open", ErrTooLarge,
			MaxDataSize+DataOverhead)
	}
	if len(label) > MaxLabelSize || len(sealed) < DataOverhead ||
		string(sealed[:len(dataMagic)]) != dataMagic {
		return nil, ErrDecryption
	}
	generation := binary.BigEndian.Uint32(sealed[len(dataMagic):])
	dataKey, err := lookup(generation)
	if err != nil {
		return nil, fmt.Errorf("data key of generation %d: %w", generation, err)
	}
	if len(dataKey) != dataKeySize {
		return nil, fmt.Errorf("%w: data keys have %d bytes", ErrInvalid, dataKeySize)
	}
	header := sealed[:dataHeaderSize]
	plaintext := make([]byte, 0, len(sealed)-DataOverhead)
	salt := header[dataHeaderSize-saltSize:]
	err = withGCM(dataKey, salt, dataInfo(label), func(aead cipher.AEAD) (err error) {
		if plaintext, err = aead.Open(plaintext, nil, sealed[dataHeaderSize:], header); err != nil {
			return ErrDecryption
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return plaintext, nil
}

// dataInfo encodes the purpose and the label, each after its length, so that no two pairs give the
// same bytes.
func dataInfo(label string) string {
	var info []byte
	for _, part := range []string{dataPurpose, label} {
		info = binary.BigEndian.AppendUint16(info, uint16(len(part)))
		info = append(info, part...)
	}
	return string(info)
}
