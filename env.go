// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/httpx"
)

// ConfigFromEnv makes a [Config] from the environment:
//
//	NOMYO_SERVER_URL    BaseURL; unset = DefaultBaseURL
//	NOMYO_API_KEY       APIKey
//	NOMYO_KEY_DIR       folder of the key store that is opened for Keys, with default KeyStoreOptions; it must exist
//	NOMYO_KEY_PASSWORD  its passphrase
//	NOMYO_SERVER_PIN    fingerprints for Trust = Pin(…), separated by commas; without it set Trust yourself
//
// The other fields stay zero: for Oblivious HTTP set Config.Protocol to [ProtocolOHTTP] afterwards. Without NOMYO_KEY_DIR
// keys are ephemeral.
//
// The caller closes Config.Keys and destroys Config.APIKey after closing the client; either may be nil. Errors are
// [*ConfigError], whose Field is the variable's name; errors.Is finds those of [OpenKeyStore], and [ErrPassphrase] without
// NOMYO_KEY_PASSWORD. Environment variables are strings that nothing wipes, and that other processes of the same user can
// read.
func ConfigFromEnv(ctx context.Context) (c Config, err error) {
	c.BaseURL = cmp.Or(os.Getenv("NOMYO_SERVER_URL"), DefaultBaseURL)
	if pin := os.Getenv("NOMYO_SERVER_PIN"); pin != "" {
		c.Trust = Pin(strings.Split(pin, ",")...)
		if err := c.Trust.validate(); err != nil {
			return Config{}, &ConfigError{Field: "NOMYO_SERVER_PIN", Err: err}
		}
	}
	dir := os.Getenv("NOMYO_KEY_DIR")
	if dir == "" && os.Getenv("NOMYO_KEY_PASSWORD") != "" { // or else keys would be ephemeral, unexpectedly
		return Config{}, configError("NOMYO_KEY_DIR", "not set, but NOMYO_KEY_PASSWORD is")
	}
	if dir != "" {
		if c.Keys, err = keysFromEnv(ctx, dir); err != nil {
			return Config{}, &ConfigError{Field: "NOMYO_KEY_DIR", Err: err}
		}
	}
	if key := os.Getenv("NOMYO_API_KEY"); key != "" {
		if c.APIKey, err = NewSecret([]byte(key)); err == nil {
			err = c.APIKey.Use(httpx.ValidAPIKey)
		}
		if err != nil {
			c.APIKey.Destroy()
			if c.Keys != nil {
				_ = c.Keys.Close()
			}
			return Config{}, &ConfigError{Field: "NOMYO_API_KEY", Err: err}
		}
	}
	return c, nil
}

func keysFromEnv(ctx context.Context, dir string) (*KeyStore, error) {
	password := os.Getenv("NOMYO_KEY_PASSWORD")
	if password == "" {
		return nil, fmt.Errorf("%w: NOMYO_KEY_PASSWORD is not set", ErrPassphrase)
	}
	passphrase, err := NewSecret([]byte(password))
	if err != nil {
		return nil, err
	}
	defer passphrase.Destroy()
	return OpenKeyStore(ctx, dir, passphrase, nil)
}
