// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package e2e tests sealedchat as its users meet it: clients and gateways over HTTP, the stored
// vectors, and what lies in the memory of a process. Its tests import the public package. They take
// the rooms below internal/ as tools, to build or to open what a peer would, and know nothing of
// the inside of a client or a gateway.
package e2e
