// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

const (
	pathOHTTP = "/.well-known/ohttp-gateway"

	problemKey  = "https://iana.org/assignments/http-problem-types#ohttp-key"
	problemDate = "https://iana.org/assignments/http-problem-types#date"
)
