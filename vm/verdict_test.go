package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestVerdicts(t *testing.T) {
	type verdict struct{ Why string }
	dir := filepath.Join(t.TempDir(), "not", "there")
	var got verdict
	if ReadVerdict(dir, "v.json", &got) || ReadVerdict("", "v.json", &got) {
		t.Error("a verdict that nobody has kept")
	}
	for _, why := range []string{"it boots", "it does not"} {
		if err := WriteVerdict(dir, "v.json", verdict{why}); err != nil {
			t.Fatal(err)
		}
		if !ReadVerdict(dir, "v.json", &got) || got.Why != why {
			t.Errorf("%+v, want %s", got, why)
		}
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("the folder has %v, %v", list, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "v.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if ReadVerdict(dir, "v.json", &got) {
		t.Error("what is damaged is a verdict")
	}
	if err := WriteVerdict("", "v.json", got); err != nil {
		t.Error(err)
	}
}

func TestVerdictKey(t *testing.T) {
	a, err := VerdictKey(t.Context(), "/bin/bash")
	if err != nil || !strings.Contains(a, "GNU bash") || strings.Contains(a, "\n") {
		t.Errorf("%q, %v", a, err)
	}
	if _, err := VerdictKey(t.Context(), "/bin/false"); err == nil {
		t.Error("a program that tells no version")
	}
}
