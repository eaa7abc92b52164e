package model

import (
	"encoding/json"
	"math"
	"os"
	"testing"
)

// TestRopeTable holds the tables against transformers'. Most values are the same to the bit; powf of the C
// library and math.Pow may differ in the last place, so a few units of it are allowed.
func TestRopeTable(t *testing.T) {
	data, err := os.ReadFile("testdata/rope.json")
	if err != nil {
		t.Fatal(err)
	}
	var rows []struct {
		Name            string          `json:"name"`
		Config          json.RawMessage `json:"config"`
		Limit           int             `json:"limit"`
		InvFreq         []float64       `json:"inv_freq"`
		AttentionFactor float64         `json:"attention_factor"`
	}
	if err := json.Unmarshal(data, &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) < 18 {
		t.Fatalf("rope.json has %d rows, want 18 or more", len(rows))
	}
	exact, total := 0, 0
	for _, row := range rows {
		t.Run(row.Name, func(t *testing.T) {
			c, err := ParseConfig(row.Config)
			if err != nil {
				t.Fatal(err)
			}
			if row.Limit > 0 {
				c.Rope.Long = row.Limit > c.Rope.OriginalMaxPositions
			}
			inv, scale := c.RopeTable()
			if math.Abs(scale-row.AttentionFactor) > 1e-12 {
				t.Errorf("attention scale %v, want %v", scale, row.AttentionFactor)
			}
			if len(inv) != len(row.InvFreq) {
				t.Fatalf("%d frequencies, want %d", len(inv), len(row.InvFreq))
			}
			for i, want := range row.InvFreq {
				total++
				if inv[i] == want {
					exact++
				}
				if math.Abs(inv[i]-want) > 4e-7*want {
					t.Errorf("inv_freq[%d] = %v, want %v", i, inv[i], want)
				}
			}
		})
	}
	if exact < total*3/4 {
		t.Errorf("only %d of %d frequencies are the same to the bit", exact, total)
	}
	t.Logf("%d of %d frequencies are the same to the bit", exact, total)
}

// How long a request may be at all, as vLLM derives it.
func TestLongestLen(t *testing.T) {
	rope := func(f fields) fields { return fields{"rope_scaling": f} }
	for name, tc := range map[string]struct {
		changes fields
		want    int
	}{
		"no scaling":          {nil, 512},
		"linear":              {rope(fields{"type": "linear", "factor": 4}), 2048},
		"llama3":              {rope(fields{"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}), 512},
		"yarn added":          {rope(fields{"type": "yarn", "factor": 4}), 2048},
		"yarn of an original": {rope(fields{"type": "yarn", "factor": 4, "original_max_position_embeddings": 256}), 1024},
		"yarn counted in":     {rope(fields{"type": "yarn", "factor": 2, "original_max_position_embeddings": 128}), 512},
	} {
		c, err := ParseConfig(with(llama, tc.changes))
		if err != nil {
			t.Fatal(name, err)
		}
		if got := c.LongestLen(); got != tc.want {
			t.Errorf("%s: %d tokens, want %d", name, got, tc.want)
		}
	}
}
