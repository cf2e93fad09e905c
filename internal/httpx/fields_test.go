// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package httpx

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		value string
		want  time.Duration
	}{
		{"", 0}, {" ", 0}, {"0", 0}, {"1", time.Second}, {" 120 ", 2 * time.Minute},
		{"007", 7 * time.Second},
		{"-1", 0}, {"+1", 0}, {"1.5", 0}, {"1e3", 0}, {"0x10", 0}, {"soon", 0}, {"1 2", 0},
		{"1, 2", 0}, {"١", 0},
		{"31536000", MaxRetryAfter}, {"31536001", MaxRetryAfter},
		{"9223372036854775807", MaxRetryAfter},
		{"18446744073709551615", MaxRetryAfter}, {"99999999999999999999999999", MaxRetryAfter},
		{now.Add(90 * time.Second).Format(http.TimeFormat), 90 * time.Second},
		// RFC 850
		{now.Add(90 * time.Second).Format("Monday, 02-Jan-06 15:04:05 GMT"), 90 * time.Second},
		{now.Add(90 * time.Second).Format(time.ANSIC), 90 * time.Second},
		{now.Format(http.TimeFormat), 0},
		{now.Add(-time.Hour).Format(http.TimeFormat), 0},
		{"Thu, 01 Jan 1970 00:00:00 GMT", 0},
		{"Fri, 31 Dec 9999 23:59:59 GMT", MaxRetryAfter},
		{"Fri, 31 Dec 9999 23:59:60 GMT", 0},
		{now.Format(time.RFC3339), 0},
	} {
		if got := RetryAfter(c.value, now); got != c.want {
			t.Errorf("%q: %v, want %v", c.value, got, c.want)
		}
	}
}

func TestValidAPIKey(t *testing.T) {
	for c := range 256 {
		err := ValidAPIKey([]byte{'k', byte(c), 'k'})
		if good := c > ' ' && c < 0x7f; (err == nil) != good ||
			err != nil && !errors.Is(err, fault.ErrInvalidRequest) {
			t.Errorf("byte %#x: %v", c, err)
		}
		if c != 'k' && err != nil && strings.Contains(err.Error(), "k\\") {
			t.Errorf("the error shows the key: %v", err)
		}
	}
	for n, ok := range map[int]bool{0: false, 1: true, 4096: true, 4097: false} {
		if err := ValidAPIKey(bytes.Repeat([]byte("k"), n)); (err == nil) != ok {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}
