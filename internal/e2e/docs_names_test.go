// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// testNames are the tests, fuzz targets, benchmarks and examples of the module and of the modules
// inside it.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark|Example)\w+)\(`)
	known := make(map[string]bool)
	err := filepath.WalkDir(".", func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() {
			if path != "." && (name == "testdata" || strings.HasPrefix(name, ".") ||
				strings.HasPrefix(name, "_")) {
				return filepath.SkipDir // no package
			}
			return nil
		}
		if !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		for _, f := range declared.FindAllStringSubmatch(string(text), -1) {
			known[f[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return known
}

// TestSecurityNames finds the tests that the documents name, and sees that claims name one.
func TestSecurityNames(t *testing.T) {
	t.Chdir(testkit.Dir(t))
	known := testNames(t)
	names := 0
	for _, d := range documents(t) {
		for _, name := range docTestName.FindAllString(d.text, -1) {
			names++
			if !known[name] {
				t.Errorf("%s: there is no %s", d.path, name)
			}
		}
	}
	if names < 250 {
		t.Errorf("%d names, want 250 or more", names)
	}

	// Each row of SECURITY.md about an attacker leads to a section that names a test.
	security := document{"SECURITY.md", readDocument(t, "SECURITY.md")}
	for heading, want := range map[string]int{
		"attackers-on-the-network":                20,
		"attackers-with-keys-files-or-an-account": 9,
	} {
		rows := tableRows(security.section(heading))
		if len(rows) < want {
			t.Errorf("%s: %d rows, want %d or more", heading, len(rows), want)
		}
		for _, row := range rows {
			m := docLink.FindStringSubmatch(row)
			if m == nil {
				t.Errorf("SECURITY.md: the row leads nowhere: %s", row)
				continue
			}
			path, name, _ := strings.Cut(m[1], "#")
			page := document{path, readDocument(t, path)}
			if !docTestName.MatchString(page.section(name)) {
				t.Errorf("SECURITY.md leads to %s, which names no test", m[1])
			}
		}
	}

	// So does each attacker of the threat model, and each row about a document's error.
	model := document{"docs/threat-model.md", readDocument(t, "docs/threat-model.md")}
	attackers := 0
	for line := range strings.Lines(model.text) {
		heading, ok := strings.CutPrefix(line, "### ")
		if !ok {
			continue
		}
		if attackers++; !docTestName.MatchString(model.section(anchor(heading))) {
			t.Errorf("%s: no test shows %s", model.path, heading)
		}
	}
	if attackers < 25 {
		t.Errorf("%s: %d attackers, want 25 or more", model.path, attackers)
	}
	rows := tableRows(model.section("errors-in-the-documents-that-this-package-follows"))
	if len(rows) < 10 {
		t.Errorf("%s: %d rows, want 10 or more", model.path, len(rows))
	}
	for _, row := range rows {
		if !docTestName.MatchString(row) {
			t.Errorf("%s: no test shows it: %s", model.path, row)
		}
	}
}

// tableRows are the rows of the tables in a text, without those that name the columns.
func tableRows(text string) (rows []string) {
	inside := false
	for line := range strings.Lines(text) {
		switch {
		case !strings.HasPrefix(line, "|"):
			inside = false
		case strings.HasPrefix(line, "|---"):
			inside = true
		case inside:
			rows = append(rows, line)
		}
	}
	return rows
}

// TestConfigurationIsComplete compares docs/configuration.md with the exported fields.
func TestConfigurationIsComplete(t *testing.T) {
	t.Chdir(testkit.Dir(t))
	page := document{"docs/configuration.md", readDocument(t, "docs/configuration.md")}
	api := readDocument(t, "testdata/api.txt")
	for section, of := range map[string]map[string]string{ // prefix of a row to the struct
		"config":          {"": "Config", "OHTTP.": "OHTTPOptions"},
		"attestation":     {"": "Attestation"},
		"keystoreoptions": {"": "KeyStoreOptions", "Rotation.": "Rotation"},
		"gatewayconfig":   {"": "GatewayConfig"},
		"gatewayohttp":    {"": "GatewayOHTTP"},
		"auditlogoptions": {"": "AuditLogOptions"},
	} {
		fields := make(map[string]bool)
		for prefix, name := range of {
			declared := regexp.MustCompile(`(?m)^type ` + name + ` struct, ([A-Z]\w*) `)
			found := declared.FindAllStringSubmatch(api, -1)
			if len(found) < 2 {
				t.Errorf("%s has %d fields", name, len(found))
			}
			for _, m := range found {
				fields[prefix+m[1]] = true
			}
		}
		for prefix := range of {
			delete(fields, strings.TrimSuffix(prefix, ".")) // its own fields have rows
		}
		for _, row := range tableRows(page.section(section)) {
			for _, m := range regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(
				strings.Split(row, "|")[1], -1) {
				if !fields[m[1]] {
					t.Errorf("%s: %s has no field %s, or two rows for it", page.path, section, m[1])
				}
				delete(fields, m[1])
			}
		}
		for name := range fields {
			t.Errorf("%s: %s has no row for %s", page.path, section, name)
		}
	}
}

// TestDocumentNames finds the types, fields and methods that the documents name in what the package
// exports. The changelog names those that are gone, too.
func TestDocumentNames(t *testing.T) {
	t.Chdir(testkit.Dir(t))
	api := readDocument(t, "testdata/api.txt")
	types := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^type (\w+) `).FindAllStringSubmatch(api, -1) {
		types[m[1]] = true
	}
	member := regexp.MustCompile(`\b([A-Z]\w+)\.([A-Z]\w+)`)
	names := 0
	for _, d := range documents(t) {
		if d.path == "CHANGELOG.md" {
			continue
		}
		for _, m := range member.FindAllStringSubmatch(d.text, -1) {
			if !types[m[1]] {
				continue
			}
			names++
			if !exports(api, m[1], m[2]) {
				t.Errorf("%s: %s has no %s", d.path, m[1], m[2])
			}
		}
	}
	if names < 40 {
		t.Errorf("%d names, want 40 or more", names)
	}
	for _, name := range []string{"APIKEY", "Sealed", "Close2"} {
		if exports(api, "Config", name) {
			t.Errorf("Config.%s is found", name)
		}
	}
}

// exports says whether a type has a field or a method in the text of testdata/api.txt.
func exports(api, of, name string) bool {
	return regexp.MustCompile(`(?m)^(type ` + of + ` struct, ` + name + ` |type ` + of +
		` interface, ` + name + `\b|method \(\*?` + of + `\) ` + name + `\()`).MatchString(api)
}

// TestArchitecture sees that the map is true: files and rooms that it names exist, all rooms are on
// it, and none imports more than it may.
func TestArchitecture(t *testing.T) {
	t.Chdir(testkit.Dir(t))
	page := document{"ARCHITECTURE.md", readDocument(t, "ARCHITECTURE.md")}
	files := docGoFile.FindAllString(page.text, -1)
	if len(files) < 40 {
		t.Errorf("%d names of files, want 40 or more", len(files))
	}
	for _, file := range files {
		if _, err := os.Stat(file); err != nil {
			t.Errorf("%s names %s: %v", page.path, file, err)
		}
	}
	listed := make(map[string]bool)
	for _, row := range tableRows(page.section("the-rooms")) {
		cells := strings.Split(strings.Trim(row, "|\n"), "|")
		room := strings.TrimSpace(cells[0])
		listed[room] = true
		for _, problem := range forbiddenImports(room, strings.TrimSpace(cells[2])) {
			t.Errorf("%s: %s", page.path, problem)
		}
	}
	entries, err := os.ReadDir("internal")
	if err != nil || len(entries) < 15 {
		t.Fatalf("%d rooms, %v", len(entries), err)
	}
	for _, entry := range entries {
		if room := "internal/" + entry.Name(); !listed[room] {
			t.Errorf("%s has no row for %s", page.path, room)
		}
	}
}

// forbiddenImports tells of imports in the files of a room that allowed does not name: rooms with
// commas between them, "any room", or "the root". Tests may import any room, and not the root.
func forbiddenImports(room, allowed string) (problems []string) {
	const root = "github.com/seed-017344ad/sealedchat"
	names := strings.Split(allowed+", fault", ", ")
	found := 0
	err := filepath.WalkDir(room, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		found++
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			imported := strings.Trim(spec.Path.Value, `"`)
			name, isRoom := strings.CutPrefix(imported, root+"/internal/")
			name, _, _ = strings.Cut(name, "/")
			anyRoom := allowed == "any room" || strings.HasSuffix(path, "_test.go")
			switch {
			case allowed == "the root":
			case imported == root:
				problems = append(problems, path+" imports the root")
			case isRoom && "internal/"+name != room && !anyRoom && !slices.Contains(names, name):
				problems = append(problems, path+" imports "+imported)
			}
		}
		return nil
	})
	if err != nil || found == 0 {
		problems = append(problems, fmt.Sprintf("%s has %d Go files, %v", room, found, err))
	}
	return problems
}

// TestForbiddenImports shows that TestArchitecture finds them.
func TestForbiddenImports(t *testing.T) {
	t.Chdir(testkit.Dir(t))
	for _, c := range []struct {
		room, allowed string
		finds         bool
	}{
		{"internal/hybrid", "envelope, erase, locked", false},
		{"internal/hybrid", "any room", false},
		{"internal/hybrid", "envelope, erase", true},
		{"internal/hybrid", "", true},
		{"internal/interop", "the root", false},
		{"internal/interop", "any room", true}, // they import the root
		{"internal/testdata", "", true},        // there is none
	} {
		if found := len(forbiddenImports(c.room, c.allowed)) > 0; found != c.finds {
			t.Errorf("%s that may import %q: found %v", c.room, c.allowed, found)
		}
	}
}
