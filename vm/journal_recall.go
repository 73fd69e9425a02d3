package vm

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// recallFile is in a machine's folder what its provider wants the next server to know.
const recallFile = "machine.json"

// maxRecall bounds the file, in bytes.
const maxRecall = 64 << 10

// Remember writes down, as JSON, what the next server cannot find out otherwise when it adopts the machine. What was written
// before is replaced as a whole.
func (r *Record) Remember(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	path := filepath.Join(r.Dir(), recallFile)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Recall reads what a provider of this name has remembered of the machine. It is an error if the machine is another's, or if
// nothing was remembered.
func (r *Record) Recall(provider string, v any) error {
	if of := r.Entry().Provider; of != provider {
		return fmt.Errorf("it is a machine of %s", of)
	}
	f, err := os.Open(filepath.Join(r.Dir(), recallFile))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, maxRecall)).Decode(v); err != nil {
		return fmt.Errorf("%s: %w", recallFile, err)
	}
	return nil
}
