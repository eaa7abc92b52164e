"""The word lists from which all training and evaluation text is generated."""

NAMES = """Mira Tom Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas Karin Leon Maria Nils Olga Pavel
Quinn Rosa Simon Tara Ursula Victor Wanda Xavier Yara Zeno Alice Bruno Celia Dario Edith Frank Gina Henry Ingrid
Jack Kira Lukas Marta Noah Oscar Paula Rafael Sofia Theo Uma Vera Walter Yusuf Zara Adam Bella Carl Daisy Emil
Flora George Hanna Ivan Julia Kurt Lena Max Nora Otto Petra Ralf Susan Tina Udo Viola Wendy Amir Birgit Colin
Doris Erik Fatima Gustav Heidi Isaac Jana Kevin Laura Milan Nadia Oliver Pilar Robin Stella Tobias Valentin Wilma
Agnes Basil Carmen Dmitri Esther Fabian Gloria Harold Ida Jakob Kamila Linus Monica Norbert Ottilie Philip Regina
Stefan Teresa Ulrich Vincent Yvonne Albert Bianca Cyril Diana Edgar Frieda Gerard Helena Igor Judith Konrad Lydia
Martin Nina Omar Priya Roland Sandra Tariq Veronica Werner Zelda Arthur Beatrice Cedric Dora Eugene Fiona Gilbert
Hilda Ismael Joanna Kaspar Louise Marcus Naomi Orlando Phoebe Rupert Selma Thomas""".split()

CITIES = """Oslo Paris Rome Berlin Madrid Lisbon Vienna Prague Dublin Athens Cairo Delhi Tokyo Seoul Lima Quito
Havana Boston Denver Dallas Toronto Geneva Milano Krakow Riga Zurich Hamburg Naples Porto Bergen Kyoto Nairobi
Sydney Perth Bogota""".split()

COLORS = """red blue green yellow purple orange black white brown pink silver golden gray violet
turquoise crimson""".split()

ADJECTIVES = """copper velvet silent frozen hidden bright ancient hollow gentle clever broken wooden crystal amber
scarlet marble rusty golden stormy quiet humble rapid simple lucky secret sunny misty proud tiny giant noble
striped""".split()

NOUNS = """lantern river falcon anchor meadow comet harbor thunder willow feather island castle tiger ladder compass
pebble garden mirror rocket canyon spider planet engine violin pepper blanket hammer candle basket window dragon
forest""".split()

OBJECTS = """key map lamp letter coin ring book rope drum sword clock bottle camera ticket pencil flute helmet
blanket basket hammer candle mirror ladder knife wallet umbrella suitcase necklace jacket bicycle""".split()

PLACES = """cellar attic kitchen garage garden library tower barn bakery chapel museum station harbor market school
theater stable office workshop bedroom balcony hallway pantry cabin tent castle hospital hotel bank courtyard
""".split()

JOBS = """baker doctor farmer teacher painter pilot sailor tailor butcher lawyer dentist singer writer plumber
gardener carpenter miner nurse waiter judge soldier banker fisherman librarian mechanic chemist barber
dancer""".split()

INSTRUMENTS = """piano violin guitar trumpet cello harp organ banjo clarinet saxophone accordion mandolin oboe
flute""".split()

FOODS = """rice soup bread cheese pasta salmon apples honey carrots pancakes noodles beans grapes cherries potatoes
mushrooms chocolate yogurt walnuts lentils dumplings tomatoes""".split()

MONTHS = """January February March April May June July August September October November December""".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

PETS = "dog cat parrot horse rabbit turtle goat hamster".split()

PET_NAMES = """Biscuit Shadow Pepper Ginger Smokey Buttons Cookie Thunder Peanut Whiskers Bubbles Rusty Noodle
Domino Waffles Pickle Lucky Muffin Sparky Patches Snowy Tango""".split()

WEATHER = "rain snow wind fog sunshine thunder frost hail".split()

TIMES = "morning evening afternoon night winter summer spring autumn".split()

VERBS = "walked looked slept waited played rested stood danced".split()

NUMBERS = [str(n) for n in range(10, 100)]

NUMBER_WORDS = """two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety""".split()
