package loadgen

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const maxPromptLine = 64 << 20

// ReadDataset reads prompts, one a line: {"prompt": "...", "output_tokens": 100}, the number of tokens to ask for
// being output where it is not there. Other fields are for others. At most so many prompts are read.
func ReadDataset(r io.Reader, output, most int) ([]Prompt, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxPromptLine)
	var list []Prompt
	n := 0
	for len(list) < most && lines.Scan() {
		n++
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var row struct {
			Prompt string `json:"prompt"`
			Output *int   `json:"output_tokens"`
		}
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			return nil, fmt.Errorf("cannot use line %d: %w", n, err)
		}
		p := Prompt{Text: row.Prompt, Output: output}
		if row.Output != nil {
			p.Output = *row.Output
		}
		if p.Text == "" || p.Output < 1 || p.Output > maxLength {
			return nil, fmt.Errorf("cannot use line %d: it needs a prompt that is not empty, and output_tokens, if any, between 1 and %d", n, maxLength)
		}
		list = append(list, p)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("cannot read line %d: %w", n+1, err)
	}
	if len(list) == 0 {
		return nil, errors.New("cannot use a data set without prompts")
	}
	return list, nil
}
