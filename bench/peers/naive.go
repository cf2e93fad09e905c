// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// The straightforward client that a Go programmer writes in an afternoon, with structs,
// json.Marshal and base64 strings. It keeps the key of the server and its connections.

type chatRequest struct {
	Model    string        `json:"model"`
	Messages []chatMessage `json:"messages"`
	Stream   bool          `json:"stream,omitempty"`
}

type chatMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type naiveEnvelope struct {
	Version   string `json:"version"`
	Algorithm string `json:"algorithm"`
	Payload   struct {
		Ciphertext string `json:"ciphertext"`
		Nonce      string `json:"nonce"`
		Tag        string `json:"tag"`
	} `json:"encrypted_payload"`
	Key string `json:"encrypted_aes_key"`
}

type naiveClient struct {
	http   *http.Client
	url    string
	server *rsa.PublicKey
	own    *rsa.PrivateKey
	header string
}

func newNaive(base string, transport http.RoundTripper) (*naiveClient, error) {
	c := &naiveClient{http: &http.Client{Transport: transport}, url: base}
	resp, err := c.http.Get(base + "/pki/public_key")
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	c.server = key.(*rsa.PublicKey)
	if c.own, err = rsa.GenerateKey(rand.Reader, 4096); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(&c.own.PublicKey)
	if err != nil {
		return nil, err
	}
	c.header = url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY",
		Bytes: der})))
	c.header = string(bytes.ReplaceAll([]byte(c.header), []byte("+"), []byte("%20")))
	return c, nil
}

func (c *naiveClient) chat(_ context.Context, prompt string) error {
	plaintext, err := json.Marshal(chatRequest{Model: "model",
		Messages: []chatMessage{{"user", prompt}}})
	if err != nil {
		return err
	}
	key, nonce := make([]byte, 32), make([]byte, 12)
	rand.Read(key)
	rand.Read(nonce)
	sealed := gcm(key).Seal(nil, nonce, plaintext, nil)
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, c.server, key, nil)
	if err != nil {
		return err
	}
	e := naiveEnvelope{Version: "1.0", Algorithm: "hybrid-aes256-rsa4096",
		Key: base64.StdEncoding.EncodeToString(wrapped)}
	e.Payload.Ciphertext = base64.StdEncoding.EncodeToString(sealed[:len(sealed)-16])
	e.Payload.Nonce = base64.StdEncoding.EncodeToString(nonce)
	e.Payload.Tag = base64.StdEncoding.EncodeToString(sealed[len(sealed)-16:])
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPost, c.url+"/v1/chat/secure_completion",
		bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("X-Payload-ID", rand.Text())
	req.Header.Set("X-Public-Key", c.header)
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d: %s", resp.StatusCode, answer)
	}
	return c.open(answer, prompt)
}

func (c *naiveClient) open(answer []byte, prompt string) error {
	var e naiveEnvelope
	if err := json.Unmarshal(answer, &e); err != nil {
		return err
	}
	wrapped, err1 := base64.StdEncoding.DecodeString(e.Key)
	ciphertext, err2 := base64.StdEncoding.DecodeString(e.Payload.Ciphertext)
	nonce, err3 := base64.StdEncoding.DecodeString(e.Payload.Nonce)
	tag, err4 := base64.StdEncoding.DecodeString(e.Payload.Tag)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	key, err := rsa.DecryptOAEP(sha256.New(), nil, c.own, wrapped, nil)
	if err != nil {
		return err
	}
	plaintext, err := gcm(key).Open(nil, nonce, append(ciphertext, tag...), nil)
	if err != nil {
		return err
	}
	var completion struct {
		Choices []struct {
			Message chatMessage `json:"message"`
		} `json:"choices"`
	}
	if err := json.Unmarshal(plaintext, &completion); err != nil {
		return err
	}
	if len(completion.Choices) != 1 || completion.Choices[0].Message.Content != prompt {
		return errors.New("another answer")
	}
	return nil
}

func gcm(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}
