"""From images to a champion: stages are verbs, doors to vendors are nouns."""
